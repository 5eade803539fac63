"""Chat templates as published models have them, without tools: name -> (template, control tokens,
what it does).

Written anew and small; what is odd about each one is kept.
"""

from typing import NamedTuple


class Published(NamedTuple):
    template: str
    tokens: tuple[str, ...]
    """Control tokens of the tokenizer; the first one is its eos, a second "bos:..." its bos."""
    ends: tuple[str, ...]
    """The tokens that may end an answer, eos included."""
    last: str
    """What is trained of the last answer, "Red." """
    first: str | None = None
    """What is trained of an earlier one where that differs; None: the same."""
    system: bool = True
    """Whether it takes a system turn."""


def _turns(turn: str, prompt: str, head: str = "") -> str:
    last = f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    return f"{head}{{% for m in messages %}}{turn}{{% endfor %}}{last}"


CHATML = "<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n"
CHATML_PROMPT = "<|im_start|>assistant\n"
MARKS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")
THINK = """{%- set ns = namespace(last=-1) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
"""
GLM_45 = (
    """[gMASK]<sop>
"""
    + THINK
    + """{% for m in messages %}
{%- if m.role == 'user' -%}<|user|>
{{ m.content }}
{{- '/nothink' if (enable_thinking is defined and not enable_thinking) else '' -}}
{%- elif m.role == 'assistant' -%}
<|assistant|>
{{- '\\n<think></think>' }}
{{- '\\n' + m.content.strip() if m.content.strip() else '' -}}
{%- elif m.role == 'system' -%}
<|system|>
{{ m.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|assistant|>{{ '\\n<think></think>' if (enable_thinking is defined and not enable_thinking) else '' }}
{%- endif -%}"""
)
GLM_4 = (
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = _turns(
    "{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
)
QWEN_3 = (
    THINK + "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GPT_OSS = (
    "<|start|>system<|message|>You are ChatGPT.<|end|>{% for m in messages %}"
    "{% if m.role == 'system' %}<|start|>developer<|message|># Instructions\n\n{{ m.content }}<|end|>"
    "{% elif m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
OLMO_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] != 'assistant' %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n"
    "{% elif not loop.last %}<|assistant|>\n{{ m['content'] + eos_token }}\n"
    "{% else %}<|assistant|>\n{{ m['content'] + eos_token }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}"
)
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ 'Assistant: ' + m['content'] + eos_token }}"
    "{% else %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
DEEPSEEK_3 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}<｜User｜>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<｜Assistant｜>{{ m['content'] }}<｜end▁of▁sentence｜>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = 'A chat.' %}{% endif %}{{ system }}"
    "{% for m in rest %}{% if m['role'] == 'user' %} USER: {{ m['content'].strip() }}"
    "{% else %} ASSISTANT: {{ m['content'].strip() + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
COHERE = _turns(
    "<|START_OF_TURN_TOKEN|>{{ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', "
    "'assistant': '<|CHATBOT_TOKEN|>'}[m['role']] + m['content'] }}<|END_OF_TURN_TOKEN|>",
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    head="{{ bos_token }}",
)

PUBLISHED: dict[str, Published] = {
    "ChatML (Qwen 2, Yi, SmolLM 2, InternLM 2)": Published(
        _turns(CHATML, CHATML_PROMPT), MARKS, ("<|im_end|>",), "Red.<|im_end|>"
    ),
    "ChatML, eos another": Published(
        _turns(CHATML, CHATML_PROMPT), MARKS[::-1], ("<|endoftext|>", "<|im_end|>"), "Red.<|im_end|>"
    ),
    "Llama 2": Published(LLAMA_2, ("</s>", "bos:<s>"), ("</s>",), " Red. </s>"),
    "Llama 3": Published(
        LLAMA_3,
        ("<|end_of_text|>", "bos:<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        ("<|end_of_text|>", "<|eot_id|>"),
        "Red.<|eot_id|>",
    ),
    "Qwen 3": Published(
        QWEN_3, (*MARKS, "<think>", "</think>"), ("<|im_end|>",),
        "<think>\n\n</think>\n\nRed.<|im_end|>", "Red.<|im_end|>",
    ),
    "Phi 3": Published(
        _turns("<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n", "<|assistant|>\n").replace(
            "{% endif %}", "{% else %}{{ eos_token }}{% endif %}"
        ),
        ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        ("<|endoftext|>", "<|end|>"),
        "Red.<|end|>",
    ),
    "Phi 4": Published(
        _turns("<|im_start|>{{ m['role'] }}<|im_sep|>{{ m['content'] }}<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
        ("<|im_end|>", "<|im_start|>", "<|im_sep|>"),
        ("<|im_end|>",),
        "Red.<|im_end|>",
    ),
    "Gemma": Published(
        GEMMA, ("<eos>", "bos:<bos>", "<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>", "<eos>"),
        "Red.<end_of_turn>", system=False,
    ),
    "Mistral": Published(MISTRAL, ("</s>", "bos:<s>", "[INST]", "[/INST]"), ("</s>",), " Red.</s>", system=False),
    "DeepSeek": Published(
        DEEPSEEK, ("<｜end▁of▁sentence｜>", "bos:<｜begin▁of▁sentence｜>"), ("<｜end▁of▁sentence｜>",),
        " Red.<｜end▁of▁sentence｜>",
    ),
    "DeepSeek 3": Published(
        DEEPSEEK_3, ("<｜end▁of▁sentence｜>", "bos:<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        ("<｜end▁of▁sentence｜>",), "Red.<｜end▁of▁sentence｜>",
    ),
    "ChatGLM 3, GLM 4": Published(
        GLM_4, ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>"),
        ("<|endoftext|>", "<|user|>"), "\nRed.<|user|>",
    ),
    "GLM 4.5": Published(
        GLM_45, ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<think>", "</think>"),
        ("<|endoftext|>", "<|user|>"), "\n<think></think>\nRed.<|user|>",
    ),
    "Minitron, a line break before the next turn": Published(
        _turns("<extra_id_{{ 0 if m['role'] == 'system' else 1 }}>{{ m['role'] }}\n{{ m['content'] }}\n",
               "<extra_id_1>assistant\n"),
        ("</s>", "<extra_id_0>", "<extra_id_1>"), ("</s>", "<extra_id_1>"), "Red.\n<extra_id_1>",
    ),
    "Zephyr": Published(
        _turns("<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n", "<|assistant|>\n"), ("</s>",), ("</s>",),
        "Red.</s>",
    ),
    "Vicuna": Published(VICUNA, ("</s>", "bos:<s>"), ("</s>",), " Red.</s>"),
    "OLMo 2": Published(OLMO_2, ("<|endoftext|>", "bos:<|bos|>"), ("<|endoftext|>",), "Red.<|endoftext|>"),
    "Granite": Published(
        _turns("<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}<|end_of_text|>\n",
               "<|start_of_role|>assistant<|end_of_role|>"),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), ("<|end_of_text|>",), "Red.<|end_of_text|>",
    ),
    "Command R": Published(
        COHERE, ("<|END_OF_TURN_TOKEN|>", "bos:<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        ("<|END_OF_TURN_TOKEN|>",), "Red.<|END_OF_TURN_TOKEN|>",
    ),
    "gpt-oss": Published(
        GPT_OSS, ("<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"), ("<|end|>", "<|return|>"),
        "<|channel|>final<|message|>Red.<|return|>", "<|channel|>final<|message|>Red.<|end|>",
    ),
}  # fmt: skip

FALCON = (
    "{% for m in messages %}{% if not loop.first %}\n{% endif %}{{ m['role'] | capitalize + ': ' + m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}\nAssistant:{% endif %}"
)
R1 = DEEPSEEK_3.replace(
    "{% if add_generation_prompt %}<｜Assistant｜>",
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n",
)
FIRST_ONLY = (
    "### Instruction:\n{{ messages[0]['content'] }}\n\n### Response:\n"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
)
REFUSED: dict[str, tuple[str, str]] = {
    "Falcon: no control token ends an answer": (FALCON, "writes nothing after the answer of turn 1 that could end it"),
    "R1: generation starts inside a thought that training never shows": (
        R1, "turn 1 so that it does not start with its own generation prompt",
    ),
    "the first question only": (FIRST_ONLY, "leaves out or changes turn 2 .user.: 'Which one exactly"),
    "no system turns": (
        _turns("{% if m['role'] != 'system' %}" + CHATML + "{% endif %}", CHATML_PROMPT),
        "leaves out or changes turn 0 .system.: 'Answer briefly",
    ),
    "answers cut before a mark": (
        _turns(CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"), CHATML_PROMPT),
        "leaves out or changes turn 4 .assistant.",
    ),
    "the header is left to the model": (_turns(CHATML, ""), "ignores add_generation_prompt"),
    "it raises": (GEMMA, r"refuses the turns .system, user.*TemplateError: System role not supported"),
    "it stumbles": (_turns("{{ m['content'] + 1 }}", ""), "refuses the turns .*TypeError"),
    "an image is repeated": (
        _turns("{% if loop.index0 == 3 %}<image>{% endif %}" + CHATML, CHATML_PROMPT), "writes 2 <image>, but",
    ),
}  # fmt: skip
"""name -> (template, what the error says of the conversation of test_templates.py)."""
