"""Text normalisers for tweets, and the keys under which two tweets count as the same one.

Each classifier expects its input prepared as it was during its own training. The normalisers here are those
preparations, one for each family of models, gathered in `NORMALISERS` under short names. All of them are pure
functions of one string, and all of them run in time linear in its length for ordinary text, so that a hostile or
damaged record of a hundred thousand characters costs milliseconds.

Example:
    >>> normaliser("violence")("RT @diario: Balacera en el centro https://t.co/abc")
    'Balacera en el centro'
"""

from __future__ import annotations

import hashlib
import html
import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import emoji

Normaliser: TypeAlias = Callable[[str], str]

_DIGEST_BYTES: Final = 16
_MAX_ROUNDS: Final = 8
# Every script in use lies in the first two planes.
_CATEGORIES: Final = {chr(code): unicodedata.category(chr(code)) for code in range(0x20000)}


def _as_ranges(characters: str) -> str:
    """Write sorted characters as the inside of a regex class, with runs folded into ranges."""
    runs: list[list[int]] = []
    for code in map(ord, characters):
        if runs and code == runs[-1][1] + 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in runs)


# Python's \w leaves out combining marks, which would cut Hindi or Thai words to pieces. Variation selectors are marks
# too, but they belong to emoji.
_SELECTORS: Final = "\ufe0e\ufe0f"
_MARKS: Final = _as_ranges(
    "".join(c for c, kind in _CATEGORIES.items() if kind in {"Mn", "Mc"} and c not in _SELECTORS)
)
# A character of a word, with the marks of scripts that combine them, for use in a pattern.
WORD_CHARACTER: Final = rf"[\w{_MARKS}\u200c\u200d]"
# string.punctuation adds the ASCII symbols ($ + < = > ^ ` | ~), which Unicode does not call punctuation.
_PUNCTUATION: Final = "".join(
    sorted({c for c, kind in _CATEGORIES.items() if kind.startswith("P")} | set(string.punctuation))
)
_EDGE: Final = _PUNCTUATION.replace("#", "")

_LATIN: Final = "A-Za-z0-9_À-ÖØ-öø-ɏ"
_APOSTROPHES: Final = "'’"
# The sentence's own punctuation after a link is not part of it. Ideographs end a link as well: Japanese tweets often
# go on without a space. The possessive quantifiers keep the match linear.
_LINK_BODY: Final = r"(?:[.,;:!?'\")\]]*+[#-&(*+\-/0-9=@A-Z\[\\^_`a-z{|}~À-ɏ\d])"
_HTTP_LINK: Final = rf"(?i:https?://){_LINK_BODY}*+"
_WWW_LINK: Final = rf"(?i:www\.){_LINK_BODY}++"
# "tod@s" and an e-mail address hold an @ but mention nobody.
_MENTION: Final = rf"(?<![{_LATIN}@])@[{_LATIN}]++"

_LINK_RE: Final = re.compile(rf"{_HTTP_LINK}|(?<![A-Za-z0-9_]){_WWW_LINK}")
_MENTION_RE: Final = re.compile(_MENTION)

# A tweet exported twice carries "&amp;amp;lt;"; folding the chain first keeps the number of later rounds small.
_AMPERSAND_RE: Final = re.compile(r"&(?:(?:amp|#0*+38|#x0*+26);)++", re.IGNORECASE)
# int() refuses a number of more than 4300 digits, and html.unescape lets that error through.
_OVERLONG_RE: Final = re.compile(r"&#(?=[0-9]{4000})")


def _unescape(text: str) -> str:
    """Replace HTML entities, also those that were escaped more than once, without ever raising."""
    if "&" not in text:
        return text
    for _ in range(_MAX_ROUNDS):
        plain = html.unescape(_OVERLONG_RE.sub("& #", _AMPERSAND_RE.sub("&", text)))
        if plain == text:
            break
        text = plain
    return text


def _collapse(text: str) -> str:
    """Turn every run of whitespace into one space and trim both ends."""
    return " ".join(text.split())


def normalise_none(text: str) -> str:
    """Return the text as it is.

    Args:
        text: The tweet.

    Returns:
        The same text.

    Source: none; for models that read raw text.

    Example:
        >>> normalise_none("RT @ana: hola ")
        'RT @ana: hola '
    """
    return text


_EMOJI_NAMES: Final = frozenset(str(entry["en"]) for entry in emoji.EMOJI_DATA.values())
_GLUED_LINK_RE: Final = re.compile(r"(?<=\w)(?=https?://)", re.IGNORECASE)
_TOKENS: Final = (
    ("link", f"{_HTTP_LINK}|{_WWW_LINK}"),
    # Flags and keycaps mean nothing one code point at a time; all other emoji are split, as in the original.
    ("sequence", "[0-9#*]\ufe0f?\u20e3|[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4[\U000e0020-\U000e007f]++"),
    ("mention", _MENTION),
    ("hashtag", rf"[#＃]++{WORD_CHARACTER}++(?:[{_APOSTROPHES}\-]{WORD_CHARACTER}++)*+"),
    ("hour", rf"[ap]\.m(?!{WORD_CHARACTER})\.?"),
    ("number", r"[+\-]?\d++(?:[.,:/\-]\d++)++"),
    ("clitic", rf"[{_APOSTROPHES}](?:m|re|s|ll|d|ve)(?!{WORD_CHARACTER})"),
    (
        "emoticon",
        rf"[<>]?[:;=][\-*^{_APOSTROPHES}]?(?:[)(\]\[}}{{|\\/]|[DPpOo](?!{WORD_CHARACTER}))"
        rf"|[)(\]\[D][\-{_APOSTROPHES}]?[:;=](?!{WORD_CHARACTER})"
        rf"|</?3(?!{WORD_CHARACTER})",
    ),
    ("arrow", "-{1,5}+>|<-{1,5}+"),
    ("word", rf"\w{WORD_CHARACTER}*+(?:(?:[{_APOSTROPHES}.\-]|(?<=[{_LATIN}])@(?=[{_LATIN}]))\w{WORD_CHARACTER}*+)*+"),
    ("dots", "[.…]{2,}+|…"),
    ("other", r"\S"),
)
_PLAIN_TOKEN_RE: Final = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _TOKENS))
_TOKEN_RE: Final = re.compile(r"(?P<code>:[^\s:]{1,100}:)|" + _PLAIN_TOKEN_RE.pattern)
_SPACED_HOUR_RE: Final = re.compile(r"(?<!\S)([ap]) \. m( \.)?(?!\S)")
_CLITICS: Final = ("n't", "'m", "'re", "'s", "'ll", "'d", "'ve")
_UNSPLIT: Final = frozenset({"can't", "ain't"})


def _split_contractions(word: str) -> str:
    """Split the clitics off the end of a word, "couldn't've" giving "could n't 've"."""
    end = len(word)
    tails: list[str] = []
    while clitic := next((c for c in _CLITICS if word.endswith(c, 0, end)), None):
        start = end - len(clitic)
        # A head that is empty or ends in a joiner would be read differently a second time.
        if start == 0 or word[start - 1] in ".-'@#＃" or (start == len("ca") and word[:end] in _UNSPLIT):
            break
        end = start
        tails.append(clitic)
    head = word[:end]
    if head.lower() in {"http", "https"}:
        head = "HTTPURL"
    elif head == "cannot":
        head = "can not"
    return " ".join([head, *reversed(tails)])


def _bertweet_tokens(text: str) -> Iterator[str]:
    """Yield the normalised tokens of a text, one after the other."""
    position = 0
    while match := _TOKEN_RE.search(text, position):
        if match.lastgroup == "code" and match.group() not in _EMOJI_NAMES:
            # A pair of colons that names no emoji, as in "Nota:agua:10".
            match = _PLAIN_TOKEN_RE.match(text, match.start()) or match
        position = match.end()
        token, kind = match.group(), match.lastgroup
        if kind == "link":
            yield "HTTPURL"
        elif kind == "mention":
            yield "@USER"
        elif kind == "code":
            yield token
        elif kind == "sequence" or token in emoji.EMOJI_DATA:
            yield emoji.demojize(token)
        elif kind in {"word", "hashtag"}:
            yield _split_contractions(token.replace("’", "'"))
        # Selectors and joiners only tie emoji together, and those are split by now.
        elif token not in _SELECTORS + "\u200d":
            yield token.replace("’", "'").replace("…", "...")


def normalise_bertweet(text: str) -> str:
    """Prepare a tweet the way BERTweet's training data was prepared.

    Mentions become @USER, links HTTPURL and emoji their names between colons; the text is split into tokens parted by
    single spaces, with English contractions taken apart. As in the original, "can't" and "ain't" in lower case stay
    whole, and only lower-case clitics are split. The original tokenises with NLTK's TweetTokenizer; the tokens here
    follow its rules in simpler form and differ on purpose in these points: the last word of a tweet is split like any
    other, flags and keycaps are named as a whole, words of scripts with combining marks stay in one piece, a lone
    "@" or "www" is no mention or link. Running the function on its own output changes nothing.

    Args:
        text: The tweet.

    Returns:
        The tokens, joined by single spaces.

    Source: Nguyen, Vu & Nguyen 2020, "BERTweet: A pre-trained language model for English Tweets",
        https://github.com/VinAIResearch/BERTweet (TweetNormalizer.py); also the input of Zhang, Lo & Win Myint 2023.

    Example:
        >>> normalise_bertweet("@ana We don’t have water… https://t.co/abc 🔥")
        "@USER We do n't have water ... HTTPURL :fire:"
    """
    spaced = _GLUED_LINK_RE.sub(" ", _unescape(text))
    return _SPACED_HOUR_RE.sub(
        lambda match: f"{match[1]}.m." if match[2] else f"{match[1]}.m",
        _collapse(" ".join(_bertweet_tokens(spaced))),
    )


_VIOLENCE_MENTION_RE: Final = re.compile(r"@[A-Za-z0-9_:]+")
_VIOLENCE_LINK_RE: Final = re.compile(r"http\S+")
_LEADING_RT_RE: Final = re.compile(r"\A(?:RT(?: |\Z))++")


def normalise_violence(text: str) -> str:
    """Prepare a tweet for the classifiers of violent events in Spanish.

    Entities are replaced, mentions and links removed, a leading retweet mark dropped and whitespace collapsed. The
    published code drops "RT " wherever it stands, so that "START NOW" reads "STANOW"; here only a mark at the very
    start goes, before or after the mention that follows it was removed.

    Args:
        text: The tweet.

    Returns:
        The text that is left, which may be empty.

    Source: Mendieta & Warren 2025, model card of the smaller-LaBSE violence classifier.

    Example:
        >>> normalise_violence("RT @alerta: START NOW &gt; evacuar ya https://t.co/abc")
        'START NOW > evacuar ya'
    """
    for _ in range(_MAX_ROUNDS):
        before = text
        text = _VIOLENCE_MENTION_RE.sub("", _unescape(text.replace("\n", " ")))
        text = _collapse(_VIOLENCE_LINK_RE.sub("", text))
        text = _LEADING_RT_RE.sub("", text)
        # Only an ampersand can form a new entity with what a removed mention had kept apart.
        if "&" not in text or text == before:
            break
    return text


_MONTHS: Final = (
    "enero|febrero|marzo|abril|mayo|junio|julio|agosto|sep?tiembre|octubre|noviembre|diciembre"
    "|ene|feb|mar|abr|may|jun|jul|ago|sept?|oct|nov|dic"
)
_DAY: Final = "(?:3[01]|[12][0-9]|0?[1-9])"
_DATE_RE: Final = re.compile(
    rf"(?<![\w#@/.\-])(?:"
    rf"[12][0-9]{{3}}(?P<iso>[/.\-]){_DAY}(?P=iso){_DAY}"
    rf"|{_DAY}(?P<sep>[/.\-]){_DAY}(?P=sep)(?:[12][0-9]{{3}}|[0-9]{{2}})"
    rf"|{_DAY}[º°]? de (?:{_MONTHS})(?:,? del? [12][0-9]{{3}})?"
    rf")(?![\w/\-]|\.\d)",
    re.IGNORECASE,
)
# The look-behinds keep numbers inside words, hashtags, mentions and version strings; a keycap emoji is no number.
_NUMBER_RE: Final = re.compile(r"(?<![\w#@])(?<!\d[.,])\d++(?:[.,]\d++)*+(?![\w\ufe0f\u20e3])")


def _link_to_url(match: re.Match[str]) -> str:
    """Return "url", kept apart from a word that the link was glued to."""
    before = match.string[match.start() - 1 : match.start()] if match.start() else ""
    after = match.string[match.end() : match.end() + 1]
    return (" " if re.match(r"\w", before) else "") + "url" + (" " if re.match(r"\w", after) else "")


def normalise_mex_a3t(text: str) -> str:
    """Replace links, mentions, dates and numbers by the words url, user, date and num.

    Dates are read in the forms 12/03/2019, 2019-03-12, 12-03-19 and "12 de marzo de 2019". Numbers may carry decimals
    and thousands. Signs and units stay, and so does a number inside a hashtag or a word.

    Args:
        text: The tweet.

    Returns:
        The text with the four placeholders.

    Source: De la Peña Sarracén & Rosso 2019, aggressiveness detection in Mexican Spanish tweets (MEX-A3T, IberLEF).

    Example:
        >>> normalise_mex_a3t("@ana el 12/03/2019 hubo 1,500 casos #19S https://t.co/abc")
        'user el date hubo num casos #19S url'
    """
    text = _LINK_RE.sub(_link_to_url, text)
    text = _MENTION_RE.sub("user", text)
    return _NUMBER_RE.sub("num", _DATE_RE.sub("date", text))


# NLTK's English list (the one of 179 words).
_STOP_WORDS: Final = frozenset(
    """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself yourselves he him his
    himself she she's her hers herself it it's its itself they them their theirs themselves what which who whom this
    that that'll these those am is are was were be been being have has had having do does did doing a an the and but if
    or because as until while of at by for with about against between into through during before after above below to
    from up down in out on off over under again further then once here there when where why how all any both each few
    more most other some such no nor not only own same so than too very s t can will just don don't should should've
    now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn doesn't hadn hadn't hasn hasn't haven
    haven't isn isn't ma mightn mightn't mustn mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren
    weren't won won't wouldn wouldn't
    """.split()  # noqa: SIM905 - the list is easier to check as text
)
# A hyphen or apostrophe between letters holds one word together.
_RESCUE_WORD_RE: Final = re.compile(
    rf"(?<!{WORD_CHARACTER})(?<![#@]){WORD_CHARACTER}++(?:[{_APOSTROPHES}\-]{WORD_CHARACTER}++)*+"
)
_ZIP_RE: Final = re.compile(r"(?<!\w)(?<!\d[.,])[0-9]{5}(?!\w)(?![.,]\d)")
_LETTER: Final = r"[^\W\d_]"
_IN_WORD: Final = rf"[^\W_]|[{_MARKS}\u200c\u200d]"
_ONE_LETTER_RE: Final = re.compile(
    rf"(?<!{_LETTER}[{_APOSTROPHES}\-])(?<!{_IN_WORD.replace('|', ')(?<!')}){_LETTER}"
    rf"(?!{_IN_WORD}|[{_APOSTROPHES}\-]{_LETTER})"
)
_JOINER_RE: Final = re.compile(rf"(?<={_LETTER})[{_APOSTROPHES}\-](?={_LETTER})")
_TO_SPACE: Final = str.maketrans(dict.fromkeys(_PUNCTUATION, " "))


def _drop_stop_word(match: re.Match[str]) -> str:
    """Return nothing for an English stop word and the word itself otherwise."""
    return "" if match.group().replace("’", "'").lower() in _STOP_WORDS else match.group()


def normalise_rescue(text: str) -> str:
    """Prepare a tweet for the classifiers of rescue requests.

    In this order: links are removed, then English stop words (NLTK's list of 179, in any case); five-digit numbers
    become "zcode"; words of one letter are removed, then punctuation; the rest is put in lower case. Hyphens and
    apostrophes inside a word vanish, other punctuation leaves a space. Digits and emoji stay. A word that follows "#"
    or "@" is a name and so never a stop word.

    Args:
        text: The tweet.

    Returns:
        The words that are left, parted by single spaces.

    Source: Wang et al. 2022, detection of rescue request tweets (Hurricane Harvey).

    Example:
        >>> normalise_rescue("We need a boat at 123 Elm St., Houston 77002! #HarveySOS https://t.co/abc")
        'need boat 123 elm st houston zcode harveysos'
    """
    text = _LINK_RE.sub(" ", text)
    text = _RESCUE_WORD_RE.sub(_drop_stop_word, text)
    text = _ZIP_RE.sub("zcode", text)
    text = _ONE_LETTER_RE.sub("", text)
    text = _JOINER_RE.sub("", text).translate(_TO_SPACE)
    return _collapse(text.lower())


NORMALISERS: Final[dict[str, Normaliser]] = {
    "none": normalise_none,
    "bertweet": normalise_bertweet,
    "violence": normalise_violence,
    "mex_a3t": normalise_mex_a3t,
    "rescue": normalise_rescue,
}


def normaliser(name: str) -> Normaliser:
    """Return the normaliser of a given name.

    Args:
        name: One of the keys of `NORMALISERS`.

    Returns:
        The function from text to text.

    Raises:
        ValueError: If there is no normaliser of that name.

    Source: the names are this package's own.

    Example:
        >>> normaliser("mex_a3t")("hola @ana")
        'hola user'
    """
    try:
        return NORMALISERS[name]
    except KeyError:
        known = ", ".join(sorted(NORMALISERS))
        raise ValueError(f"unknown normaliser {name!r}; known are: {known}") from None


_LEADING_RETWEET_RE: Final = re.compile(rf"\A(?:rt ?@[{_LATIN}]++ ?:? ?)++")
_VIA: Final = frozenset({"via", "vía"})


def _digest(text: str) -> bytes:
    """Return the 16-byte BLAKE2b digest of a text in UTF-8."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=_DIGEST_BYTES).digest()


def _without_retweet_mark(text: str) -> str:
    """Fold case, width, entities and whitespace, and drop a chain of retweet marks at the start."""
    # Case first: "&AMP;" and "&Eacute;" must read like "&amp;" and "&eacute;". The entities may bring capitals back.
    folded = unicodedata.normalize("NFKC", _unescape(text.casefold())).casefold()
    return _LEADING_RETWEET_RE.sub("", _collapse(folded))


def _is_mention(word: str) -> bool:
    """Tell whether a word is one mention, perhaps with punctuation around it."""
    rest, mentions = _MENTION_RE.subn("", word)
    return mentions == 1 and not rest.strip(_EDGE)


def _canonical(base: str) -> str:
    """Reduce a folded text to its words, without links, mentions, credits and punctuation."""
    words = _LINK_RE.sub(" ", base).split()
    while len(words) > 1 and words[-2].strip(_EDGE) in _VIA and _is_mention(words[-1]):
        del words[-2:]
    bare = (word.strip(_EDGE) for word in _MENTION_RE.sub(" ", " ".join(words)).split())
    return " ".join(word for word in bare if word)


def canonical_words(text: str) -> list[str]:
    """Return the words that ``duplicate_key`` compares: folded, without links, mentions and punctuation at their edges.

    Args:
        text: The tweet.

    Source: this package's own definition.

    Example:
        >>> canonical_words("RT @ana: Tiembla en Oaxaca!")
        ['tiembla', 'en', 'oaxaca']
    """
    return _canonical(_without_retweet_mark(text)).split()


def duplicate_key(text: str) -> bytes:
    """Return a key that retweets and copies of one tweet share.

    Entities, case, character width, whitespace, leading "RT @user:" chains, "via @user" endings, links, mentions and
    punctuation at word edges make no difference; the "#" of a hashtag does. A text of links, mentions or punctuation
    alone is compared by those, folded in case and whitespace, so that two such tweets stay apart.

    Args:
        text: The tweet, any string that can be encoded as UTF-8.

    Returns:
        A digest of 16 bytes.

    Source: this package's own definition; BLAKE2b is RFC 7693.

    Example:
        >>> duplicate_key("RT @ana: Tiembla en Oaxaca!") == duplicate_key("tiembla en Oaxaca https://t.co/abc")
        True
    """
    base = _without_retweet_mark(text)
    return _digest(_canonical(base) or base)


def text_hash(text: str) -> bytes:
    """Return a digest of the exact text.

    Args:
        text: The text, any string that can be encoded as UTF-8.

    Returns:
        A digest of 16 bytes.

    Source: BLAKE2b, RFC 7693.

    Example:
        >>> text_hash("hola").hex() == text_hash("Hola").hex()
        False
    """
    return _digest(text)
