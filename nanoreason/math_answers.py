r"""The answer in a response to a mathematical question, and when two answers are the same; no text is run as code.

    marked_answer("so 9 - 4 = 5\n#### 5")             "5": the answer that is marked: \boxed{...}, ####, <answer> tags
    is_same_answer(r"\frac{1}{2}", "0.5")             True: numbers, fractions, percentages, sets, tuples, algebra

Two judges. The strict one wants one marked answer, or a response that is nothing but the answer, with the exact value.
Where the gold answer is a number it must be written out: "17 * 4" is no answer to what 17 * 4 is. The lenient one looks
for an answer in prose too and overlooks sums that are not worked out, units, percent signs, "x =", kinds of brackets,
capitals and rounding: it says how much of a low accuracy is only form. All work is bounded, and nothing raises.

Equality of values cannot tell whether a polynomial was factored or a root simplified as the question wanted.
"""

from __future__ import annotations

import re
from fractions import Fraction

from nanoreason.algebra import is_same_value, rational, value_at
from nanoreason.arithmetic import MAX_ANSWER
from nanoreason.prompts import ANSWER, END

MAX_ITEMS, MAX_NESTING = 32, 4  # of sets and tuples
MARK = re.compile(r"\\(?:boxed|fbox)\s*\{|####|<answer>")
NUMBER = re.compile(r"(?<![0-9])-?\$?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)(?:\s?/\s?[0-9]+)?%?")
SAID = re.compile(r"answer(?:\s{1,3}is)?\s{0,3}:?", re.IGNORECASE)
THOUSANDS = re.compile(r"(-?)([0-9]{1,3}(?:,[0-9]{3})+)((?:\.[0-9]+)?%?)")
NOT_UNITS = r"(?!.*\b(?:or|and|to|plus|minus|times|over|half|dozen|hundred|thousand|million|billion)\b)"
UNITS = re.compile(
    NOT_UNITS + r"(-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?%?)"
    r"(?:\s+[A-Za-z][A-Za-z][A-Za-z .^/-]*[23]?|(?:cm|mm|km|kg|mg|ml|ft|in|hr|mph)\^?[23]?)"
)
VALUE = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
NUMERAL = re.compile(  # a number that is written out: nothing is left to be computed
    rf"-?{VALUE}(?:/[0-9]+)?%?|-?\\frac\{{-?{VALUE}\}}\{{-?{VALUE}\}}%?|-?\([0-9]+\+\\frac\{{[0-9]+\}}\{{[0-9]+\}}\)"
    rf"|-?{VALUE}(?:\*10\^(?:-?[0-9]+|\{{-?[0-9]+\}})|[eE][-+]?[0-9]+)"
)
IN_TEXT = r"\\(?:text|mathrm|textbf|mathbf|mbox|boxed|fbox)\s*"
# What a notation may be replaced by before anything is compared, in this order.
NOTATION = [
    (re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\displaystyle|\\[!;:]|\\q?quad(?![a-zA-Z])|\\\$|\$|~"), ""),
    (re.compile(r"\\[()\[\]]"), ""),  # the brackets of formulas
    (re.compile(r"\{,\}|\\,"), ","),  # 1{,}234
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(rf"{IN_TEXT}\{{\s*(?:and|or)\s*\}}|(?<=[\s0-9}}])(?:and|or)(?=[\s0-9\\])"), ","),
    (re.compile(rf"{IN_TEXT}\{{([^{{}}]*)\}}"), r" \1 "),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°"), ""),
    (re.compile(r"\\(?:cdot|times)(?![a-zA-Z])|[×·∙]"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])|÷"), "/"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"[−–—]"), "-"),
    (re.compile("√"), r"\\sqrt "),
    (re.compile("π"), r"\\pi "),
    (re.compile("²"), "^2"),
    (re.compile("³"), "^3"),
    (re.compile(r"\\frac\s*([0-9])\s*(?=[0-9{])"), r"\\frac{\1}"),
    (re.compile(r"\\frac\{([^{}]*)\}\s*([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"(?<![0-9.])([0-9]+)\s*\\frac\{([0-9]+)\}\{([0-9]+)\}"), r"(\1+\\frac{\2}{\3})"),  # 1\frac12 is 3/2
    (re.compile(r"^(-?)\s*([0-9]+)\s+([0-9]+)\s*/\s*([0-9]+)$"), r"\1(\2+\\frac{\3}{\4})"),
]  # fmt: skip

# ---------------------------------------------------------------------------------------------- where the answer is


def marked_answer(response: str) -> str | None:
    r"""What stands in \boxed{...}, behind #### or in <answer> tags; where several are marked, they must be the same.

    >>> marked_answer(r"\boxed{\frac{1}{2}}"), marked_answer("#### 72\n"), marked_answer(r"\boxed{4} or \boxed{5}")
    ('\\frac{1}{2}', '72', None)
    """
    found = ""
    start = 0
    while mark := MARK.search(response, start):
        content, start = marked_at(response, mark)
        if not content or (found and content != found):
            return None
        found = content
    return found or None


def marked_at(response: str, mark: re.Match) -> tuple[str, int]:
    """(what a mark holds, where it ends); "" if it holds nothing, is not closed, or holds more than MAX_ANSWER."""
    start, depth = mark.end(), 1
    window = response[start : start + MAX_ANSWER + 1]
    if mark[0] == "####":
        line = window.split("\n", 1)[0]
        return (line.strip() if len(line) <= MAX_ANSWER else ""), start + len(line)
    if mark[0] == ANSWER:
        end = window.find(END)
        return (window[:end].strip() if end >= 0 else ""), start + (end + len(END) if end >= 0 else len(window))
    for i, character in enumerate(window):
        if i and window[i - 1] == "\\" and character in "{}":
            continue
        depth += (character == "{") - (character == "}")
        if not depth:
            return window[:i].strip(), start + i + 1
    return "", start + len(window)


def without_boxes(text: str) -> str:
    r"""What a worked solution says where nothing in it is marked.

    >>> without_boxes(r"so $\boxed{\frac{1}{2}}$, or \boxed{0.5}")
    'so $\\frac{1}{2}$, or 0.5'
    """
    parts, start = [], 0
    while (mark := MARK.search(text, start)) and (found := marked_at(text, mark))[0]:
        parts += [text[start : mark.start()], found[0]]
        start = found[1]
    return "".join([*parts, text[start:]])


def strict_answer(response: str) -> str | None:
    """The marked answer, or the whole response if nothing is marked and it is short enough to be one."""
    if MARK.search(response):
        return marked_answer(response)
    whole = response.strip()
    return whole if whole and len(whole) <= MAX_ANSWER else None


def lenient_answers(response: str) -> list[str]:
    """What a patient reader may take for the answer: what the last mark holds; where nothing is marked, what follows
    the last "answer is", the last number, and the whole response."""
    start = max(response.rfind(mark) for mark in ("\\boxed", "\\fbox", "####", ANSWER))
    if start >= 0 and (mark := MARK.match(response, start)):
        content, _ = marked_at(response, mark)
        return [content] if content else []
    said, number = last(SAID, response), last(NUMBER, response)
    behind = response[said.end() : said.end() + MAX_ANSWER].split("\n", 1)[0].split(". ", 1)[0] if said else ""
    return [behind.strip(" *:"), number[0] if number else "", response.strip()]


def last(pattern: re.Pattern, text: str) -> re.Match | None:
    found = None
    for match in pattern.finditer(text):
        found = match
    return found


# -------------------------------------------------------------------------------------------- when answers are equal


def is_same_answer(gold: str, answer: str | None, lenient: bool = False) -> bool:
    r"""Whether an answer is the gold one; two answers that nothing can be said about are compared as text.

    >>> is_same_answer("1,234", "1234.0"), is_same_answer(r"\{1,2\}", r"\{2, 1\}"), is_same_answer("(1,2)", "(2,1)")
    (True, True, False)
    >>> is_same_answer("12", "12 cm"), is_same_answer("12", "12 cm", lenient=True), is_same_answer("", "")
    (False, True, False)
    """
    if not answer or max(len(gold), len(answer)) > MAX_ANSWER:
        return False
    a, b = tidy(gold), tidy(answer)
    if not a or not b:
        return False
    return same(a, b) or (lenient and same_leniently(a, b, gold, answer))


def tidy(text: str) -> str:
    """One notation for what TeX and prose write in many; without spaces, but between words."""
    text = in_one_notation(text)
    if found := THOUSANDS.fullmatch(text.replace(" ", "")):
        text = found[1] + found[2].replace(",", "") + found[3]
    return text if re.search(r"[a-zA-Z] [a-zA-Z]|[0-9] [0-9]", text) else text.replace(" ", "")


def in_one_notation(text: str) -> str:
    text = text.strip().rstrip(".").strip()
    for pattern, by in NOTATION:
        text = pattern.sub(by, text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


def pieces(text: str, separator: str) -> list[str]:
    """The text cut where the separator stands outside all brackets."""
    found, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text.startswith(separator, i) and not depth:
            found.append(text[start:i].strip())
            start = i = i + len(separator)
            continue
        depth += (text[i] in "([{") - (text[i] in ")]}")
        i += 1
    return [*found, text[start:].strip()]


def bracketed(text: str) -> tuple[str, str, str] | None:
    r"""("(", "1,2", ")") of a text that one pair of brackets encloses; \{ and \} count as one bracket."""
    for opened, closed in (("\\{", "\\}"), ("(", ")"), ("(", "]"), ("[", ")"), ("[", "]")):
        if len(text) > len(opened + closed) and text.startswith(opened) and text.endswith(closed):
            inner, depth = text[len(opened) : -len(closed)], 0
            for character in inner:
                depth += (character in "([{") - (character in ")]}")
                if depth < 0:
                    return None
            return (opened, inner, closed) if depth == 0 else None
    return None


def same(gold: str, answer: str, loose: bool = False, nesting: int = 0) -> bool:
    """Whether two tidy answers have the same exact value or the same parts: sets in any order, tuples in theirs.

    loose   a number may be left to be computed, as in 3 * 4 for 12
    """
    if gold == answer:
        return True
    if nesting > MAX_NESTING:
        return False
    for separator in (",", "\\cup", "="):
        parts = pieces(plus_minus(gold), separator), pieces(plus_minus(answer), separator)
        if max(map(len, parts)) > 1:
            return same_items(*parts, loose, nesting, ordered=False)
    left, right = bracketed(gold), bracketed(answer)
    if left and right and ("," in left[1] or "," in right[1] or "\\{" in (left[0], right[0])):
        ordered = left[0] != "\\{"
        alike = (left[0], left[2]) == (right[0], right[2])
        return alike and same_items(pieces(left[1], ","), pieces(right[1], ","), loose, nesting, ordered)
    if NUMERAL.fullmatch(gold) and not loose and not NUMERAL.fullmatch(answer):
        return False
    words = re.search("[a-zA-Z]{3}", re.sub(r"\\[a-zA-Z]+", "", f"{gold} {answer}"))
    return not words and is_same_value(gold, answer) is True


def plus_minus(text: str) -> str:
    r"""The two values of a text with one \pm, as a list."""
    if text.count("\\pm") != 1 or "," in text:
        return text
    return text.replace("\\pm", "+") + "," + text.replace("\\pm", "-")


def same_items(gold: list[str], answer: list[str], loose: bool, nesting: int, ordered: bool) -> bool:
    """Whether the items are the same, each with one partner."""
    if len(gold) != len(answer) or len(gold) > MAX_ITEMS or not all(gold) or not all(answer):
        return False
    if ordered:
        return all(same(x, y, loose, nesting + 1) for x, y in zip(gold, answer, strict=True))
    left = list(answer)
    for x in gold:
        partner = next((i for i, y in enumerate(left) if same(x, y, loose, nesting + 1)), None)
        if partner is None:
            return False
        del left[partner]
    return True


def same_leniently(a: str, b: str, gold: str, answer: str) -> bool:
    """With all that the lenient judge overlooks; a, b: the tidy forms of what is written in gold and answer."""
    a, b = bare(a, gold), bare(b, answer)
    if not a or not b:
        return False
    return a.lower() == b.lower() or same(a, b, loose=True) or rounds_to(a, b) or rounds_to(b, a)


def bare(text: str, written: str) -> str:
    """Without a unit, "x =", percent sign, the brackets of a set or a choice."""
    if found := UNITS.fullmatch(text) or UNITS.fullmatch(in_one_notation(written)):
        text = tidy(found[1])
    text = re.sub(r"^[a-zA-Z]\s*=", "", text).removesuffix("%")
    inside = bracketed(text)
    if inside and (inside[0] == "\\{" or (inside[0] == "(" and re.fullmatch("[a-zA-Z]", inside[1]))):
        text = inside[1]
    return text


def rounds_to(exact: str, decimal: str) -> bool:
    """Whether `decimal`, of at least three significant digits, is the rounded value of `exact`.

    >>> rounds_to("10/3", "3.33"), rounds_to("10/3", "3.3"), rounds_to("\\\\sqrt{2}", "1.414"), rounds_to("2", "1.99")
    (True, False, True, False)
    """
    if not re.fullmatch(r"-?[0-9]*\.[0-9]+", decimal) or len(decimal.replace(".", "").lstrip("-0")) < 3:
        return False
    value = rational(exact)
    if value is None:
        roots = value_at(exact, 0)
        letters = re.search("[a-zA-Z]", exact.replace("\\frac", "").replace("\\sqrt", ""))
        if not roots or letters or min(roots) < 0:
            return False
        value = Fraction(sum(float(c) * n**0.5 for n, c in roots.items()))
    half = Fraction(1, 2 * 10 ** len(decimal.partition(".")[2]))
    return abs(value - Fraction(decimal)) <= half


def canonical(answer: str) -> str:
    """The text that all wordings of a number share; of other answers, their tidy text.

    >>> canonical("1,234.50"), canonical(r"\\frac{6}{4}"), canonical("$x + 1$")
    ('2469/2', '3/2', 'x+1')
    """
    text = tidy(answer) if len(answer) <= MAX_ANSWER else " ".join(answer.split())
    value = rational(text)
    return str(value) if value is not None else text
