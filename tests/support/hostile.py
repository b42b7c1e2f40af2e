"""Rollouts whose texts would run in a page, break it or hide in it, were they taken for anything but text."""

from dataclasses import replace

from rlora.types import Group, Message, Problem, Prompt, Rollout, StopReason, Verdict, VerdictKind
from support.rollouts import completion

MARK = "hostileRan"  # what every script here would set on `window`: a page that shows them must have none of it

TEXTS = {
    "script": f"<script>window.{MARK} = 1</script> so it is 4",
    "end of a script": f"</script><script>window.{MARK} = 2</script>",
    "end of a script in capitals": f"</SCRIPT\t\n><ScRiPt>window.{MARK} = 3</sCrIpT >",
    "event handler": f'<img src="x" onerror="window.{MARK} = 4"><svg onload="window.{MARK} = 5"></svg>',
    "end of an attribute": f"\" onmouseover=\"window.{MARK} = 6\" autofocus onfocus='window.{MARK} = 7' x=`",
    "link": f'<a href="javascript:window.{MARK} = 8">here</a> javascript:window.{MARK}=9',
    "comment": "<!-- <script> <!--",
    "end of a comment": f"--> --!> ]]> <script>window.{MARK} = 10</script>",
    "end of everything": "</pre></div></template></textarea></title></style></svg></math></body></html><plaintext>",
    "style": "<style>* { display: none !important }</style><link rel=stylesheet href=//192.0.2.1/x.css>",
    "frame": "<iframe srcdoc='<script>parent.hostileRan = 11</script>'></iframe><object data=x></object>",
    "picture of elsewhere": '<img src="http://192.0.2.1/pixel.png"><video poster="https://example.org/v.png">',
    "page of elsewhere": '<meta http-equiv="refresh" content="0;url=http://192.0.2.1/"><base href="//192.0.2.1/">',
    "form": '<form action="http://192.0.2.1/"><input name="q" autofocus accesskey="j"></form>',
    "entities": "&lt;b&gt; &amp;amp; &#60;script&#62; &#x202e; &nbsp; &unknown; & && &",
    "template of Jinja": "{{ 7 * 7 }} {% raw %} {# x #} {%- for a in b -%} {{ config.__class__ }}",
    "template of Python": "{0} {name!r} {} %s %(x)s %% $x ${x} #{x} {{{{",
    "template of JavaScript": f"${{window.{MARK} = 12}} `${{1 + 1}}` \\u003cscript\\u003e \\x3c",
    "JSON": '"}],"text":"x"}\\", \\\\ \\u0000 \\ud800 {"__proto__": {"polluted": 1}}',
    "names of objects": "__proto__ constructor hasOwnProperty toString valueOf",
    "line separators": "one\u2028two\u2029three\u0085four\x0bfive\x0csix\r\nseven\reight",
    "half of a surrogate pair": "high \ud83d low \udca9 reversed \udca9\ud83d",
    "a NUL": "before\x00after \x01\x02\x08\x1b[31mred\x1b[0m\x7f\x9b",
    "right to left": "\u202eright to left\u202c \u2067isolate \u200f\u061c \u202a\u202d never closed \u202e3 + 4",
    "unseen": "zero\u200bwidth\ufeff\u2060\u00ad\u180e joined\u200d\u200c tag\U000e0041\U000e0042",
    "marks on marks": "Z" + "\u0300\u0327\u0335" * 200 + "algo",
    "one long word": "x" * 20_000,
    "one long line": "so it goes " * 2_000,
    "many lines": "a\n" * 5_000,
    "nested": "<div>" * 2_000 + "$(" * 500 + "\\left(" * 500,
    "mathematics not closed": r"$\frac{1}{2 and \( x^2 + \[ \begin{array}{c} \left( 1 \over $$ \boxed{\frac{",
    "no mathematics": r"$\href{javascript:window.hostileRan=13}{x}$ $\text{<b>}$ $<script>$ \(a<b\) $&$",
    "a macro of itself": r"$\def\a{\a\a}\a$ $\newcommand{\b}{\b\b}\b$ \input{/etc/passwd} $x^{x^{x^{x^{x^{x^{x}}}}}}$",
    "too many dollars": "$" * 1_001,
    "spaces": "  two  spaces\tand\ttabs   \n\n\n   and lines   ",
    "nothing": "",
    "a regular expression": r"(a+)+$ [ ( * \ .* (?=x)",
    "many alphabets": "漢字 العربية עברית हिन्दी ไทย 👩‍👩‍👧‍👦 🏳️‍🌈 ﷽ ½ Ａ ı İ ß",
}  # fmt: skip


def hostile_rollouts(*, version: int = 0) -> list[Group]:
    """Return a group for each text, which stands in all that a rollout says: question, gold, text, answer and reason.

    The first of each two rollouts is right, the second is wrong and cut off. They are saved and read as any others:
    `RolloutFolder(path).save(step, hostile_rollouts())`.
    """
    groups = []
    for number, (name, text) in enumerate(TEXTS.items()):
        problem = Problem(
            id=f"hostile/{number} {name} {text[:80]}",
            question=f"{name}: {text}",
            answer=text,
            source="hostile",
            messages=(Message(role="user", content=text), Message(role="assistant", content=text)) * (number % 2),
        )
        said = replace(completion(tuple(range(5, 5 + min(len(text), 64))), version=version), text=text)
        right = Verdict(
            kind=VerdictKind.CORRECT, reward=1.0, extracted=text, reason=text, parts={f"part {text[:20]}": 1.0}
        )
        wrong = Verdict(kind=VerdictKind.WRONG, reward=0.0, extracted=f"not {text}", reason=f"wrong: {text}")
        groups.append(
            Group(
                prompt=Prompt(problem=problem, text=text, token_ids=(1, 2, 3)),
                rollouts=(
                    Rollout(completion=said, verdict=right),
                    Rollout(completion=replace(said, stop=StopReason.LENGTH), verdict=wrong),
                ),
            )
        )
    return groups
