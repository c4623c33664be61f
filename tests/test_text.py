"""Tests of the tweet normalisers and the duplicate keys. All tweets are invented."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalemine.text import (
    NORMALISERS,
    duplicate_key,
    normalise_bertweet,
    normalise_mex_a3t,
    normalise_none,
    normalise_rescue,
    normalise_violence,
    normaliser,
    text_hash,
)

# Random Unicode seldom holds a mention or an entity, so pieces that the rules look at are mixed in.
PIECES = st.sampled_from(
    [
        *"@#&;:.,'’…-+/()<>=\"!_\n \t",
        *"aDpxRTé5５日िüß",
        "RT ", "rt @x: ", "@ana", "@@", "via ", "http", "https://", "www.", "t.co/a", "#19S", "&amp;", "&lt;", "&#35;",
        "amp;", "n't", "'s", "'ve", "can't", "cannot", "p.m.", " p . m .", "12/03/2019", "12 de marzo", "1,500.50",
        "77002", "🔥", "👍🏽", "🇲🇽", "1️⃣", ":fire:", ":)", "D:", "<3", "\u200d", "\ufe0f", "\u20e3", "\u0301", "\x1c",
    ]
)  # fmt: skip
TEXTS = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=14).map("".join))
MANY = settings(max_examples=400, deadline=None)


def test_registry_holds_the_five_names() -> None:
    assert set(NORMALISERS) == {"none", "bertweet", "violence", "mex_a3t", "rescue"}
    assert normaliser("rescue") is normalise_rescue


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown normaliser 'tweet'.*bertweet.*mex_a3t.*none.*rescue.*violence"):
        normaliser("tweet")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@ana_ruiz look: https://t.co/Ab9 and www.ayuda.mx", "@USER look : HTTPURL and HTTPURL"),
        ("Incendio en la sierra 🔥🔥", "Incendio en la sierra :fire: :fire:"),
        ("Gracias 👍🏽 ❤️ 🇲🇽", "Gracias :thumbs_up: :medium_skin_tone: :red_heart: :Mexico:"),
        ("We don’t know… they're safe", "We do n't know ... they 're safe"),
        ("I'm sure it's what we'll need", "I 'm sure it 's what we 'll need"),
        ("they've lost all, he'd say", "they 've lost all , he 'd say"),
        ("they couldn't've left", "they could n't 've left"),
        ("I can't and it ain't over", "I can't and it ain't over"),
        ("Can't stay, cannot go", "Ca n't stay , can not go"),
        ("Shelter opens 5 p.m. or 10 a.m", "Shelter opens 5 p.m. or 10 a.m"),
        ("at 5 p . m . sharp", "at 5 p.m. sharp"),
        ("Safe now :) <3 #HoustonStrong!", "Safe now :) <3 #HoustonStrong !"),
        ("fish &amp; water", "fish & water"),
        ("Hola a tod@s, escriban a mesa@ayuda.mx", "Hola a tod@s , escriban a mesa@ayuda.mx"),
        ("地震です https://t.co/xyzを見て @yuki", "地震です HTTPURL を見て @USER"),
        ("कृपया मदद करें #बाढ़", "कृपया मदद करें #बाढ़"),
        ("Nota:agua:10", "Nota : agua : 10"),
        ("wwww so funny @ home", "wwww so funny @ home"),
    ],
)  # fmt: skip
def test_bertweet(text: str, expected: str) -> None:
    assert normalise_bertweet(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("START NOW", "START NOW"),
        ("RTVE dice: START NOW", "RTVE dice: START NOW"),
        ("RT @alerta_gto: START NOW", "START NOW"),
        ("@jefe RT balacera en el centro", "balacera en el centro"),
        ("RT @a: RT @b: balacera", "balacera"),
        ("El ALERT sigue, RT por favor", "El ALERT sigue, RT por favor"),
        ("Reportan disparos\nen la colonia &amp;amp; bloqueo", "Reportan disparos en la colonia & bloqueo"),
        ("Balacera  hoy @vecina https://t.co/a1 cuidado", "Balacera hoy cuidado"),
        ("https://t.co/a1", ""),
        ("RT @sola:", ""),
    ],
)
def test_violence(text: str, expected: str) -> None:
    assert normalise_violence(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("@pepe mira https://t.co/q2 y www.nota.mx.", "user mira url y url."),
        ("el 12/03/2019 y 2019-03-12 y 12-03-19", "el date y date y date"),
        ("El 12 de marzo de 2019, o el 1º de MAYO", "El date, o el date"),
        ("costó $1,500.50 y 3 más", "costó $num y num más"),
        ("#19S y #2019 siguen, covid19 y 5G también", "#19S y #2019 siguen, covid19 y 5G también"),
        ("faltan 99/99/2019 cosas", "faltan num/num/num cosas"),
        ("tod@s con @luz", "tod@s con user"),
        ("ojohttps://t.co/q2", "ojo url"),
        ("número 1️⃣", "número 1️⃣"),
    ],
)
def test_mex_a3t(text: str, expected: str) -> None:
    assert normalise_mex_a3t(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WE need THE boat at 123 Elm St., Houston 77002!", "need boat 123 elm st houston zcode"),
        ("zip 770021 or 7700 or 77002-1234", "zip 770021 7700 zcode 1234"),
        ("2 kids 🙏 x ñ 5", "2 kids 🙏 5"),
        ("#HarveySOS @HCSO_help", "harveysos hcso help"),
        ("¡Ayuda! «agua» — ¿dónde?", "ayuda agua dónde"),
        ("e-mail the team", "email team"),
        # Links first: their words and five-digit parts leave nothing behind.
        ("boat https://t.co/77002", "boat"),
        # Links before stop words: "www." alone would be no link.
        ("boat www.can", "boat"),
        # Stop words before punctuation: "don't" is on the list, "dont" is not.
        ("don't wait, Don’t panic", "wait panic"),
        # Stop words before punctuation: "#we" is not yet a plain word.
        ("#we stay", "we stay"),
        # Numbers before punctuation: the point still shows that these digits are decimals.
        ("depth 1.77002", "depth 1 77002"),
        ("a.b.cd", "cd"),
        # Lower case last, yet stop words are found in capitals.
        ("THE ROOF", "roof"),
    ],
)
def test_rescue(text: str, expected: str) -> None:
    assert normalise_rescue(text) == expected


def test_none_returns_the_text_itself() -> None:
    assert normalise_none(" RT @ana:  hola\n") == " RT @ana:  hola\n"


@pytest.mark.parametrize(
    "copy",
    [
        "RT @red_sismo: Tiembla en Oaxaca, cuídense #SismoMX",
        "RT @a: RT @b : tiembla en oaxaca, cuídense #sismomx",
        "Tiembla  en Oaxaca,\ncuídense #SismoMX https://t.co/Zz1",
        "Tiembla en Oaxaca, cuídense #SismoMX vía @red_sismo https://t.co/Zz1",
        "Tiembla en Oaxaca, cuídense #SismoMX (via @red_sismo)",
        "@ana “Tiembla en Oaxaca”, cu&iacute;dense #SismoMX!!!",
        "TIEMBLA EN OAXACA, CUI\u0301DENSE #SISMOMX",
        "Ｔｉｅｍｂｌａ en Oaxaca, cuídense #SismoMX",
    ],
)
def test_copies_share_a_key(copy: str) -> None:
    assert duplicate_key(copy) == duplicate_key("Tiembla en Oaxaca, cuídense #SismoMX")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Tiembla en Oaxaca", "Tiembla en Puebla"),
        ("sismo en Oaxaca", "#sismo en Oaxaca"),
        ("https://t.co/aaa", "https://t.co/bbb"),
        ("@ana", "@eva"),
        ("🔥", "🙏"),
        ("", "!"),
        ("vuelo via @aire, hoy", "vuelo hoy"),
        ("via satélite", "satélite"),
        ("ayuda rt @ana hola", "ayuda hola"),
    ],
)
def test_different_tweets_keep_different_keys(one: str, other: str) -> None:
    assert duplicate_key(one) != duplicate_key(other)


def test_text_hash_is_exact_and_stable() -> None:
    assert text_hash("").hex() == "cae66941d9efbd404e4d88758ea67670"
    assert len({text_hash(t) for t in ("hola", "Hola", "hola ", "ho\u0301la", "hóla")}) == 5


def test_entity_with_too_many_digits_is_left_alone() -> None:
    bomb = "&#" + "9" * 5000 + "; agua &lt; luz"
    assert normalise_violence(bomb).endswith("; agua < luz")
    assert len(duplicate_key(bomb)) == 16
    assert "agua < luz" in normalise_bertweet(bomb)


@pytest.mark.parametrize(
    "piece",
    ["a.", "-", ".", "www.", "http://", "&amp;", "&#38;", "@", "#1", "1,", "x'd", ":", "RT @x ", "(", " ", "12 de "],
)
def test_long_texts_take_little_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    for function in (*NORMALISERS.values(), duplicate_key):
        function(text)
    assert time.process_time() - start < 5


@MANY
@given(TEXTS)
def test_nothing_raises(text: str) -> None:
    for function in NORMALISERS.values():
        assert isinstance(function(text), str)
    assert len(duplicate_key(text)) == len(text_hash(text)) == 16


@pytest.mark.parametrize("name", ["none", "bertweet", "violence", "mex_a3t"])
@MANY
@given(text=TEXTS)
@example(text="&@x#39; &@y#38;amp;lt;")
@example(text="RT @x: https://t.co/a RT hola")
@example(text="##n't x.n't I'd've 👒 woman’s 3.5km 0/0www.a")
def test_second_pass_changes_nothing(name: str, text: str) -> None:
    once = NORMALISERS[name](text)
    assert NORMALISERS[name](once) == once


@MANY
@given(TEXTS)
def test_bertweet_leaves_no_mention_and_no_link(text: str) -> None:
    tokens = normalise_bertweet("@ana " + text + " https://t.co/a").split(" ")
    assert tokens[0] == "@USER"
    assert tokens[-1] == "HTTPURL"
    assert not any("http://" in token.lower() or "https://" in token.lower() for token in tokens)


@MANY
@given(TEXTS)
def test_rescue_leaves_lower_case_without_punctuation(text: str) -> None:
    result = normalise_rescue(text)
    assert result == result.lower()
    assert not set(result) & set("@#.,;:!?'\"()-_/&")


@MANY
@given(TEXTS)
@example("")
@example(": hola")
@example("RT @y: https://t.co/a")
def test_retweet_mark_does_not_change_the_key(text: str) -> None:
    assert duplicate_key("RT @x: " + text) == duplicate_key(text)


@MANY
@given(st.one_of(TEXTS.filter(str.isascii), st.text(st.characters(max_codepoint=127), max_size=80)))
@example("&PI; &Eacute; &AMP;")
def test_ascii_case_does_not_change_the_key(text: str) -> None:
    assert duplicate_key(text.upper()) == duplicate_key(text) == duplicate_key(text.lower())
