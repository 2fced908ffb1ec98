"""Chat templates of the families: what the published ones write of text and images, without tools and videos."""

from typing import Final

LLAVA: Final = """\
{%- for message in messages -%}
    {%- if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif -%}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'image') -%}
        {{- '<image>\n' -}}
    {%- endfor -%}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'text') -%}
        {{- content['text'] + ' ' -}}
    {%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
"""

LLAVA_QWEN: Final = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + ' ' -}}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'image') -%}
        {{- '<image>' -}}
    {%- endfor -%}
    {%- for content in message['content'] | selectattr('type', 'equalto', 'text') -%}
        {{- '\n' + content['text'] -}}
    {%- endfor -%}
    {{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""

LLAVA_MISTRAL: Final = """\
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST] ' -}}
        {%- for content in message['content'] | selectattr('type', 'equalto', 'image') -%}
            {{- '<image>\n' -}}
        {%- endfor -%}
        {%- for content in message['content'] | selectattr('type', 'equalto', 'text') -%}
            {{- content['text'] -}}
        {%- endfor -%}
        {{- ' [/INST]' -}}
    {%- else -%}
        {%- for content in message['content'] %}{{ ' ' + content['text'] + eos_token }}{% endfor -%}
    {%- endif -%}
{%- endfor -%}
"""

MISTRAL: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST]' -}}
        {%- if message['content'] is string %}{{ message['content'] }}{% else -%}
            {%- for content in message['content'] -%}
                {%- if content['type'] == 'image' %}{{ '[IMG]' }}{% else %}{{ content['text'] }}{% endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- '[/INST]' -}}
    {%- else -%}
        {%- for content in message['content'] %}{{ content['text'] + eos_token }}{% endfor -%}
    {%- endif -%}
{%- endfor -%}
"""

GEMMA: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' -}}
    {%- if message['content'] is string %}{{ message['content'] | trim }}{% else -%}
        {%- for content in message['content'] -%}
            {%- if content['type'] == 'image' %}{{ '<start_of_image>' }}
            {%- else %}{{ content['text'] | trim }}{% endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<end_of_turn>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}
"""

GLM: Final = """\
{{- '[gMASK]<sop>' -}}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>\n' -}}
    {%- if message['content'] is string %}{{ message['content'] }}{% else -%}
        {%- for content in message['content'] -%}
            {%- if content['type'] == 'image' %}{{ '<|begin_of_image|><|image|><|end_of_image|>' }}
            {%- else %}{{ content['text'] }}{% endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}
"""

COHERE: Final = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|START_OF_TURN_TOKEN|>' + ('<|CHATBOT_TOKEN|>' if message['role'] == 'assistant' else '<|USER_TOKEN|>') -}}
    {%- if message['content'] is string %}{{ message['content'] }}{% else -%}
        {%- for content in message['content'] -%}
            {%- if content['type'] == 'image' %}{{ '<|IMG_PATCH|>' }}{% else %}{{ content['text'] }}{% endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|END_OF_TURN_TOKEN|>' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif -%}
"""

_CHATML: Final = """\
{%- for message in messages -%}
    SYSTEM
    {{- '<|im_start|>' + message['role'] + '\n' -}}
    {%- if message['content'] is string %}{{ message['content'] }}{% else -%}
        {%- for content in message['content'] -%}
            {%- if content['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ content['text'] }}{% endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
_SYSTEM: Final = """\
{%- if loop.first and message['role'] != 'system' -%}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
    {%- endif -%}"""


def chatml(image: str, *, system: bool = False) -> str:
    """ChatML, the turns of Qwen and InternVL.

    Args:
        image: what stands for an image.
        system: open with a system turn where the messages have none, as Qwen2-VL and Qwen2.5-VL do.
    """
    return _CHATML.replace("    SYSTEM\n", f"    {_SYSTEM}\n" if system else "").replace(
        "IMAGE", image.replace("\n", r"\n")
    )


def idefics(bos: str) -> str:
    """Idefics3 and SmolVLM: ``User:``, and what ends an utterance."""
    return (
        bos + "{% for message in messages %}{{ message['role'] | capitalize }}"
        "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in message['content'] %}"
        "{% if line['type'] == 'text' %}{{ line['text'] }}{% else %}{{ '<image>' }}{% endif %}"
        "{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
