"""Tuning methods: a folder each, with its section of the recipe (`config.py`) and its module (`module.py`)."""

from sktune.registry import Registry

METHODS = Registry(
    "method",
    "module",
    {
        "sk_prefix": "sktune.methods.sk_prefix:SKPrefix",
        "sk_prompt": "sktune.methods.sk_prompt:SKPrompt",
        "head_only": "sktune.methods.head_only:HeadOnly",
        "prompt_tuning": "sktune.methods.prompt_tuning:PromptTuning",
        "prefix_tuning": "sktune.methods.prefix_tuning:PrefixTuning",
        "p_tuning": "sktune.methods.p_tuning:PTuning",
        "lora": "sktune.methods.lora:Lora",
        "ia3": "sktune.methods.ia3:IA3",
        "llama_adapter": "sktune.methods.llama_adapter:LlamaAdapter",
        "bottleneck_adapter": "sktune.methods.bottleneck_adapter:BottleneckAdapter",
        "top_layers": "sktune.methods.top_layers:TopLayers",
        "full": "sktune.methods.full:FullFineTuning",
        "prompt_based": "sktune.methods.prompt_based:PromptBased",
        "in_context": "sktune.methods.in_context:InContext",
    },
)
