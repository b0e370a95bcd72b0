"""Chat templates in the forms that published models have, in our own words, for the tokens of `CHAT_SPECIAL`."""

from __future__ import annotations

ASK = "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
TURN = "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n"
EACH = "{% for m in messages %}" + TURN + "{% endfor %}"
# A loop that writes message after message, and what asks for an answer behind it.
IN_ORDER = {
    "chatml": EACH + ASK,
    "gemma": """{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}
{%- set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) and m.role != 'tool' %}
        {{- raise_exception('alternate') }}
    {%- endif %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<|start|>' + role + '\n' + (first if loop.first else '') + m.content | trim + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>model\n' }}{% endif %}""",
    "llama31": """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = "26 Jul 2024" %}{% endif %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif %}
{{- '<|start|>system\n' + 'Today: ' + date_string + '\n\n' }}
{%- if tools %}{% for t in tools %}{{ t | tojson(indent=4) + (',' if not loop.last else '') }}{% endfor %}{% endif %}
{{- system + '<|end|>' }}
{%- for m in messages %}
    {%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) %}
        {{- '<|start|>' + m.role + '\n' + m.content | trim + '<|end|>' }}
    {%- elif 'tool_calls' in m %}
        {{- '<|start|>assistant\n' }}
        {%- for c in m.tool_calls %}<|call|>{{ c.function.name + c.function.arguments | tojson }}{% endfor %}
        {{- '<|end|>' }}
    {%- else %}{{ '<|start|>ipython\n' + m.content | tojson + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}""",
    "mistral, old": """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}
{{- ' ' + m.content + eos_token }}{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}""",
    "looks back": "{% for m in messages %}{{ loop.previtem.role if loop.previtem else '' }}"
    "{{ messages[loop.index0 - 1].role if loop.index0 else '' }}" + TURN + "{% endfor %}" + ASK,
    "some loop over tools behind": EACH
    + "{% if tools %}{% for t in tools %}{{ t.name }}{% endfor %}{% endif %}"
    + ASK,
    "only two messages": "{{ messages[1].role }}" + EACH + ASK,
}
# Those of which one run does not tell all beginnings: what is written depends on messages that follow, or on state.
OUT_OF_ORDER = {
    "qwen3": """{%- if tools %}
    {{- '<|start|>system\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{{ '<|end|>\n' }}
{%- endif %}
{%- set ns = namespace(looking=true, last=messages | length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.looking and m.role == 'user' and not m.content.startswith('<tool_response>') %}
        {%- set ns.looking = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set said = m.content %}
    {%- if m.role == 'assistant' %}
        {%- set thought = m.reasoning_content or '' %}
        {%- if '</think>' in said %}
            {%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- said }}
        {%- for c in m.tool_calls or [] %}
            {{- '<tool_call>\n' + c.function.name + c.function.arguments | tojson + '\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + said + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|end|>\n' }}{% endif %}
    {%- else %}{{ '<|start|>' + m.role + '\n' + said + '<|end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}""",
    "qwen3.5": """{%- macro words(content) %}
    {%- if content is string %}{{ content }}{% elif content %}
        {%- for part in content %}{{ part.text if 'text' in part else raise_exception('no text') }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{%- if tools %}
    {{- '<|start|>system\n<tools>' }}{% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}{{ '\n</tools>' }}
    {%- if messages[0].role == 'system' %}{{ '\n\n' + words(messages[0].content) | trim }}{% endif %}
    {{- '<|end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|start|>system\n' + words(messages[0].content) | trim + '<|end|>\n' }}
{%- endif %}
{%- set ns = namespace(looking=true, last=messages | length - 1) %}
{%- for m in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.looking and m.role == 'user' and not words(m.content).startswith('<tool_response>') %}
        {%- set ns.looking = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- if ns.looking %}{{ raise_exception('no question') }}{% endif %}
{%- for m in messages %}
    {%- set said = words(m.content) | trim %}
    {%- if m.role == 'system' %}
        {%- if not loop.first %}{{ raise_exception('system comes first') }}{% endif %}
    {%- elif m.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
        {%- elif '</think>' in said %}
            {%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set said = said.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|start|>assistant\n' }}
        {%- if loop.index0 > ns.last %}{{ '<think>\n' + thought | trim + '\n</think>\n\n' }}{% endif %}
        {{- said }}
        {%- for c in m.tool_calls or [] %}
            {{- ('\n\n' if loop.first and said else '\n' if not loop.first else '') + '<tool_call>\n<function=' }}
            {{- c.function.name + '>\n' }}
            {%- for name, value in c.function.arguments | items %}
                {{- '<parameter=' + name + '>\n' }}
                {{- value if value is string else value | tojson }}{{ '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|end|>\n' }}
    {%- elif m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + said + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|end|>\n' }}{% endif %}
    {%- else %}{{ '<|start|>' + m.role + '\n' + said + '<|end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}
    {%- else %}{{ '<think>\n' }}{% endif %}
{%- endif %}""",
    "deepseek r1": """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_tool=false, system='') %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}
{{- bos_token + ns.system }}
{%- for m in messages %}
    {%- if m.role == 'user' %}{% set ns.is_tool = false %}{{ '[INST]' + m.content }}{% endif %}
    {%- if m.role == 'assistant' %}
        {%- set said = m.content %}
        {%- if '</think>' in said %}{% set said = said.split('</think>')[-1] %}{% endif %}
        {{- ('' if ns.is_tool else '[/INST]') + said + eos_token }}{% set ns.is_tool = false %}
    {%- endif %}
    {%- if m.role == 'tool' %}{% set ns.is_tool = true %}{{ '<|call|>' + m.content + '<|sep|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.is_tool %}{{ '[/INST]<think>\n' }}{% endif %}""",
    "last has no end": "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
    "{% if not loop.last or m.role != 'assistant' %}<|end|>\n{% endif %}{% endfor %}" + ASK,
    "end of the last only": "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
    "{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}" + ASK,
    "counted at first": "{{ messages | length }}" + EACH + ASK,
    "asks by the last role": EACH + "{% if messages[-1].role == 'user' %}" + ASK + "{% endif %}",
    "counts in the loop": "{% set ns = namespace(n=0) %}{% for m in messages %}"
    + TURN
    + "{% set ns.n = ns.n + 1 %}{% endfor %}{% if add_generation_prompt %}{{ ns.n }}<|start|>assistant\n{% endif %}",
    "cycles": "{% set turn = cycler('a', 'b') %}{% for m in messages %}{{ turn.next() }}"
    + TURN
    + "{% endfor %}{{ turn.current }}"
    + ASK,
    "all users first": "{% set asked = messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ asked[0].content }}" + EACH + ASK,
    "looks ahead": "{% for m in messages %}"
    + TURN
    + "{{ loop.nextitem.role if loop.nextitem else 'none' }}{% endfor %}"
    + ASK,
    "looks ahead by number": "{% for m in messages %}{{ messages[loop.index].role if loop.index0 < 3 else '' }}"
    + TURN
    + "{% endfor %}"
    + ASK,
    "stops in between": "{% for m in messages %}{% if loop.index0 == 3 %}{% break %}{% endif %}"
    + TURN
    + "{% endfor %}"
    + ASK,
    "goes on": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
    + TURN
    + "{% endfor %}"
    + ASK,
    "loops twice": EACH + "{% for m in messages %}{{ m.role }}{% endfor %}" + ASK,
    "from another loop": "{% if true %}" + EACH + "{% endif %}" + ASK,
    "with an else": "{% for m in messages if m.role == 'user' %}" + TURN + "{% else %}none{% endfor %}" + ASK,
    "in a macro": "{% macro write(all) %}{% for m in all %}"
    + TURN
    + "{% endfor %}{% endmacro %}{{ write(messages) }}"
    + ASK,
    "added up": "{% for m in messages + [] %}" + TURN + "{% endfor %}" + ASK,
    "asks inside": "{% for m in messages %}"
    + TURN
    + "{% if add_generation_prompt %}!{% endif %}{% endfor %}"
    + ASK,
    "one lookup behind": EACH + "{{ messages[2].role }}" + ASK,
    "as JSON": "{{ messages | tojson }}" + EACH + ASK,
    "a list is no other": "{{ messages is string }}{{ messages }}" + EACH + ASK,
}
PUBLISHED = {**IN_ORDER, **OUT_OF_ORDER}
