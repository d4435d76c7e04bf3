"""A trained adapter in the forms that other tools read.

A target is a module with `write(trained, folder) -> str` (the lines that use what it wrote) and `Plain`, which reads
the folder without sktune's model and gives logits; a target is added by a line here.
"""

TARGETS = {"peft": "sktune.export.peft_folder", "transformers": "sktune.export.key_values"}
