"""A trained adapter in the forms that other tools read.

A target is a module with `write(trained, folder)`, which returns how what it wrote is used, and
`replay(trained, folder, count)`, which reads examples with it and says how far they are from what sktune gives; a
target is added by a line here.
"""

TARGETS = {
    "peft": "sktune.export.peft_folder",
    "transformers": "sktune.export.key_values",
    "vllm": "sktune.export.vllm_folder",
    "vocabulary": "sktune.export.vocabulary",
    "mlflow": "sktune.export.mlflow_folder",
}
