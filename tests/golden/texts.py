"""Texts of our own for the golden files: a small corpus in several languages, and lines that try tokenizers.

The corpus trains the tiny tokenizers that are committed, so it holds nothing from elsewhere. nasty_lines()
is deterministic by seed and yields strings (never lone surrogates); damaged_bytes() yields lines of bytes
that are not valid UTF-8, which graft and the references both read as Python's errors="replace" does.
"""
import random

ENGLISH = """\
The river runs past the old mill and under the stone bridge before it reaches the sea.
A good teacher explains the same thing in three ways, and then asks the class a question.
She had 12 apples, gave 5 to her brother and bought 7 more; now she has 14 apples.
If a train leaves at 9:30 and arrives at 11:45, the journey takes two hours and fifteen minutes.
I can't say that it's easy, but we'll try, and they've promised they'd help; you're welcome, I'm sure.
Water boils at 100 degrees, freezes at 0, and covers more than 70% of the planet.
The price rose from $3.50 to $4.25, an increase of about 21.4 percent.
To bake bread you need flour, water, salt and yeast; mix them, wait, and heat the oven to 220 C.
What is the largest city of the country? The capital, which has 8,799,800 inhabitants.
Write a short letter to a friend who has moved away, and ask how the new work is going.
The answer is not always the first thing that comes to mind; think, check, and only then speak.
Please summarise the following text in one sentence. Translate it into French. Count the words.
"""
CHINESE = """\
今天天气很好，我们一起去公园散步吧。
小明有十二个苹果，给了弟弟五个，又买了七个，现在他有多少个苹果？
请把下面的句子翻译成英文，并说明你的理由。
水在一百度沸腾，在零度结冰。
学习编程最好的方法是自己动手写程序，然后慢慢改进。
这本书讲述了一个年轻人在城市里寻找工作的故事。
问题：一列火车每小时行驶120公里，3小时能行驶多少公里？答案：360公里。
中国的首都是北京，法国的首都是巴黎，日本的首都是东京。
请写一篇关于秋天的短文，不少于一百字。
"""
CODE = """\
def add(a, b):
    return a + b
for (int i = 0; i < n; i++) {
\tsum += values[i] * 2;
}
#include <stdio.h>
int main(void) { printf("%d\\n", 42); return 0; }
if x >= 10 and not done:
    print(f"x = {x:.2f}", end="")
SELECT name, COUNT(*) FROM users WHERE age > 21 GROUP BY name;
const f = (x) => x.map((y) => y ** 2).filter(Boolean);
while (p != NULL) { p = p->next; }  // walk the list
{"key": "value", "list": [1, 2, 3], "nested": {"ok": true}}
"""
OTHER = """\
Müller fährt über die Straße nach Köln. Où est la bibliothèque ? El niño comió piña mañana.
Привет, как дела? Сегодня хорошая погода. こんにちは、世界。カタカナとひらがな。안녕하세요 세계.
مرحبا بالعالم. שלום עולם. नमस्ते दुनिया। สวัสดีชาวโลก Γειά σου Κόσμε Việt Nam tiếng Việt
😀 😂 👍🏽 👨‍👩‍👧‍👦 🇨🇳 🇩🇪 ❤️ ✨ → ← ≤ ≥ ≠ ∑ ∫ √ € £ ¥ © ® ™ … “quoted” ‘single’ – — «guillemets»
"""
CORPUS = ENGLISH + CHINESE + CODE + OTHER

SENTENCES = {
    "en": [line for line in ENGLISH.splitlines()],
    "zh": [line for line in CHINESE.splitlines()],
    "code": [CODE[0:39], "\n".join(CODE.splitlines()[2:5]), *CODE.splitlines()[5:]],
}

# Pieces that nasty lines are made of: each has tripped a tokenizer somewhere.
SPACES = [
    " ", "  ", "   ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2003", "\u2009",
    "\u200b", "\u202f", "\u1680", "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\ufeff", " \n",
    "\n ", " \t ", "       "
]
WORDS = [
    "Hello", "world", "the", "don't", "I'm", "WE'LL", "they'Ve", "it'ſ", "x'd", "'s", "'S", "''re", "naïve",
    "nai\u0308ve", "Å", "A\u030a", "\u212b", "ﬁne", "①②③", "½", "x²", "ª", "Ⅷ", "ＡＢＣ１２３", "ｶﾀｶﾅ", "가",
    "\u1100\u1161", "\u1112\u1161\u11ab", "중국어", "漢字", "中文", "汉语拼音", "𠀀𠀁", "𝔘𝔫𝔦", "ǅ", "ß", "İstanbul", "ı",
    "Ω", "\u2126", "e\u0301\u0323", "e\u0323\u0301", "क्षि", "ก็", "ﷺ", "שָׁלוֹם", "\u0344", "\u0958", "Việt",
    "tiê\u0301ng"
]
NUMBERS = [
    "0", "7", "12", "123", "1234", "1234567890", "3.14159", "1,000,000", "-42", "1e-5", "0x1F", "١٢٣", "१२३",
    "５６", "²³", "12abc34", "2024-01-31", "٪", "𝟙𝟚", "Ⅻ", "৪", "1/2", "$5.00", "50%"
]
PUNCTUATION = [
    "!", "!!!", "...", "……", "，", "。", "？！", "()", "[]{}", "//", "/*", "*/", "->", "=>", "::", "'", '"', "`",
    "```", "~", "\\", "|", "&&", "<>", "</s", "_", "__init__", "-", "--", "—", "'''", "#", "##", "####", "@x",
    "\u2581", "\u2581\u2581", "Ġ", "Ċ", "<0x41>", "<0x0A>", "▁the"
]
EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🇨🇳", "❤️", "❤", "✨", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "☺️", "1️⃣", "🤷🏻‍♀️", "\u200d", "\ufe0f"]
ODD = [
    "\ufffd", "\u0000", "\u0001", "\u001b[0m", "\u007f", "\u00ad", "\u0378", "\ue000", "\U0010ffff", "\uffff",
    "\u200e", "\u202e", "\u0301", "\u0300\u0301\u0302", "\u3099", "\u115f", "\u00b7", "\u2011", "\ud7ff",
    "\U000e0001"
]
SPECIALS = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|eot_id|>",
    "<bos>", "<eos>", "<start_of_turn>", "<tool_call>", "</tool_call>", "<|im_start", "|im_end|>",
    "<extra_id_0>", "<|im_start|>user\n", " <|im_end|> ", "[INST]"
]


def nasty_lines(count, seed=1, specials=True):
    """count deterministic strings: first every piece alone and between letters, then random mixtures."""
    rng = random.Random(seed)
    groups = [SPACES, WORDS, NUMBERS, PUNCTUATION, EMOJI, ODD] + ([SPECIALS] if specials else [])
    lines = [""] + [
        form % piece for group in groups for piece in group for form in ("%s", "a%s", "%sb", "a %s b")
    ]
    words = [w for line in (ENGLISH + CHINESE).splitlines() for w in line.split()]
    while len(lines) < count:
        parts = []
        for _ in range(rng.randint(1, 14)):
            kind = rng.random()
            if kind < 0.25:
                parts.append(rng.choice(words))
            elif kind < 0.5:
                parts.append(rng.choice(SPACES))
            elif kind < 0.53:
                point = rng.choice([rng.randint(0, 0x2FFF), rng.randint(0xE000, 0x10FFFF)])
                parts.append(chr(point))
            else:
                parts.append(rng.choice(rng.choice(groups)))
            if rng.random() < 0.1:
                parts[-1] *= rng.randint(2, 5)
        lines.append("".join(parts))
    return lines[:count]


def damaged_bytes(count, seed=1):
    """Lines of bytes without newline, most invalid UTF-8: cut, flipped, overlong, surrogates, too high."""
    rng = random.Random(seed)
    fixed = [
        b"\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80", b"\xff\xfe", b"a\xe4\xbd", b"a\xe4\xbd b", b"\xf0\x9f\x98", b"\xf0\x9f\x98x",
        b"\xf0\x9f", b"\xc3", b"\xc3(", b"\xe2\x28\xa1", b"\xe2\x82\x28", b"\xf0\x28\x8c\xbc",
        b"ok \xc1\xbf ok", b"\xe1\x80\xc0", b"\xf1\x80\x80\xc0", b"\xf0\x80\x80\x80", b"\xf5\x80\x80\x80"
    ]
    lines = list(fixed)
    source = [line.encode() for line in CORPUS.splitlines()]
    while len(lines) < count:
        data = bytearray(rng.choice(source))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            if rng.random() < 0.5:
                data[at] = rng.randint(0x80, 0xFF)
            else:
                del data[at]
            if not data:
                data = bytearray(b"\xe4")
        lines.append(bytes(data).replace(b"\n", b" ").replace(b"\r", b" "))
    return lines[:count]
