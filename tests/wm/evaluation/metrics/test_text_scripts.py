"""Text metrics in other scripts, of short texts and of none, against rouge_score and sacrebleu themselves."""

import random
import unicodedata

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics.bleu import BLEU

from tests.helpers.text_figures import TEXT_METRICS, text_metrics
from wm.evaluation.metrics.text import ROUGE_METRICS, report_text
from wm.evaluation.probe import Preference
from wm.evaluation.report.figures import inverse_section, probe_section
from wm.evaluation.report.findings import Findings
from wm.evaluation.report.summary import format_tables
from wm.evaluation.tables import Collected, build_tables
from wm.words import bleu_tokenizer, count_words, normalise, same_text, split_words

SPACED = {
    "ru": ("intl", ["открой дверь", "возьми красную чашку со стола", "Закрой ящик"],
           ["открой дверь", "возьми синюю чашку со стола", "закрой ящик"]),
    "hi": ("intl", ["दरवाज़ा खोलो", "लाल कप को मेज से उठाओ", "दराज बंद करो"],
           ["दरवाज़ा खोलो", "नीला कप को मेज से उठाओ", "दराज बंद करो"]),
    "ko": ("intl", ["문을 열어라", "빨간 컵을 탁자에서 집어라"], ["문을 열어라", "파란 컵을 탁자에서 집어라"]),
    "ar": ("intl", ["افتح الباب", "خذ الكوب الأحمر من الطاولة"], ["افتح الباب", "خذ الكوب الأزرق من الطاولة"]),
    "el": ("intl", ["άνοιξε την πόρτα", "πάρε το κόκκινο φλιτζάνι"], ["άνοιξε την πόρτα", "πάρε το μπλε φλιτζάνι"]),
    "fr": ("13a", ["ouvre la fenêtre", "ferme le tiroir à gauche"], ["ouvre la fenêtre", "ferme le tiroir à droite"]),
}  # fmt: skip
UNSPACED = {
    "zh": ("zh", ["打开门", "拿起桌上的红色杯子"], ["打开门", "拿起桌上的蓝色杯子"]),
    "ja": ("char", ["ドアを開ける", "赤いカップを取る"], ["ドアを開ける", "青いカップを取る"]),
    "th": ("char", ["เปดประต", "หยบถวย"], ["เปดประต", "หยบจาน"]),
}


class Split(Tokenizer):
    """rouge_score's own interface: words as a function gives them."""

    def __init__(self, split):
        self._split = split

    def tokenize(self, text):
        return self._split(text)


def rouge_of(texts, references, split):
    scorer = RougeScorer(list(ROUGE_METRICS), tokenizer=Split(split))
    scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    return {name: np.mean([score[name].fmeasure for score in scores]) for name in ROUGE_METRICS}


def bleu_of(texts, references, tokenize):
    return BLEU(tokenize=tokenize, effective_order=True).corpus_score(texts, [references]).score / 100


@pytest.mark.parametrize("language", [*SPACED, *UNSPACED])
def test_every_script_agrees_with_the_libraries(language):
    tokenize, texts, references = (SPACED | UNSPACED)[language]
    split = list if language in UNSPACED else lambda text: text.lower().split()
    report = report_text(texts, references)
    expected = rouge_of(texts, references, split) | {"bleu": bleu_of(texts, references, tokenize)}
    assert report.figures == pytest.approx(expected | {"exact_match": report.figures["exact_match"]})
    assert all(0 < value < 1 for value in report.figures.values())
    assert tokenize in report.notes["bleu"] and ("without spaces" in report.notes["rouge1"]) == (language in UNSPACED)
    assert text_metrics(references, references) == pytest.approx(dict.fromkeys(TEXT_METRICS, 1.0))
    wrong = text_metrics(["zzz"] * len(references), references)
    assert wrong == dict.fromkeys(TEXT_METRICS, 0.0)  # a true 0 stays 0


def test_ascii_figures_are_those_of_the_libraries():
    """Made-up English with punctuation, digits, capitals and underscores; rouge_score and sacrebleu as they come."""
    rng = random.Random(0)
    words = [
        "open",
        "the",
        "Door",
        "don't",
        "pick-up",
        "cup_2",
        "3.5",
        "red,",
        "U.S.",
        "left!",
        "(slowly)",
        "&amp;",
        "a/b",
    ]
    for _ in range(40):
        texts, references = ([" ".join(rng.choices(words, k=rng.randint(4, 8))) for _ in range(6)] for _ in range(2))
        figures = text_metrics(texts, references)
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
        scores = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
        for name in ROUGE_METRICS:
            assert figures[name] == pytest.approx(np.mean([score[name].fmeasure for score in scores]), abs=1e-12)
        assert figures["bleu"] == pytest.approx(BLEU().corpus_score(texts, [references]).score / 100, abs=1e-12)


def test_words_of_ascii_are_those_of_rouge_score():
    from rouge_score.tokenize import tokenize

    rng = random.Random(1)
    for _ in range(500):
        text = "".join(chr(rng.randrange(128)) for _ in range(30))
        assert split_words(normalise(text)) == tokenize(text, None)


def test_words_are_counted_in_every_script():
    """As ``str.split`` where words stand between blanks; characters where they do not (marks are no words)."""
    english = "pick-up  the cup_2, don't -\tnow!"
    assert count_words(english) == len(english.split()) == 6
    for text in (text for _, texts, _ in SPACED.values() for text in texts):
        assert count_words(text) == len(text.split())
    assert [count_words(text) for text in ("打开门", "打开 door。", "ドアを開ける", "เปิดประตู", "", " 。")] == [
        3,
        3,
        6,
        7,
        0,
        1,
    ]
    assert count_words("打开门。") == 3


def test_short_narrations_have_a_bleu():
    """EPIC's: shorter than four words. sacrebleu without the option gives 0 for all of them."""
    references = ["open door", "take cup", "close drawer", "pick up knife"]
    for texts in (references, ["open door", "take plate", "close drawer", "pick knife"], ["open", "take", "a", "b"]):
        report = report_text(texts, references)
        assert report.figures["bleu"] == pytest.approx(bleu_of(texts, references, "13a")) != 0
        assert BLEU().corpus_score(texts, [references]).score == 0
    assert "up to 3-grams" in report_text(references, references).notes["bleu"]
    assert report_text(references, references).figures["bleu"] == pytest.approx(1)
    assert text_metrics(["x"] * 4, references)["bleu"] == 0.0


def test_a_pair_of_words_needs_two_words():
    """rouge_score gives ROUGE-2 = 0 to a right one-word action."""
    assert RougeScorer(["rouge2"]).score("open", "open")["rouge2"].fmeasure == 0
    report = report_text(["open", "close"], ["open", "close"])
    assert report.absent == {"rouge2": "no reference has two words"} and "rouge2" not in report.figures
    mixed = report_text(["open", "close the door"], ["open", "close a door"])
    assert mixed.figures["rouge2"] == RougeScorer(["rouge2"]).score("close a door", "close the door")["rouge2"].fmeasure
    assert "over the 1 of 2 references with two words" in mixed.notes["rouge2"]
    assert report_text(["x", "close it now"], ["open", "put cup down"]).figures["rouge2"] == 0.0


@pytest.mark.parametrize("references", [["", " "], ["👍", "👩‍🍳"], ["?!", "…"], ["。", "！？"]], ids=range(4))
def test_references_without_words_have_no_rouge(references):
    report = report_text(["open door", "take"], references)
    assert {"rouge1", "rouge2", "rougeL"} <= set(report.absent) and not {"rouge1", "rougeL"} & set(report.figures)
    assert ("bleu" in report.absent) == (not any(text.strip() for text in references))
    assert set(report.absent) | set(report.figures) == set(TEXT_METRICS)
    assert not set(report.absent) & set(report.figures) and report.figures["exact_match"] == 0.0


def test_empty_predictions_are_wrong_ones():
    assert text_metrics(["", ""], ["open door", "打开门"]) == dict.fromkeys(TEXT_METRICS, 0.0)
    half = report_text(["", "open"], ["", "open"])
    assert half.figures["rouge1"] == 1.0 and "over the 1 of 2" in half.notes["rouge1"]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("ouvre la fenêtre", unicodedata.normalize("NFD", "ouvre la fenêtre")),
        ("문을 열어라", unicodedata.normalize("NFD", "문을 열어라")),
        ("मे\u095b पर", "मे\u091c\u093c पर"),
        ("ガラス を 取る", unicodedata.normalize("NFD", "ガラス を 取る")),
        ("第12号", "第１２号"),
        ("cup 3 left", "ｃｕｐ　３　ｌｅｆｔ"),
        ("カップ", "ｶｯﾌﾟ"),
        ("می‌شود", "میشود"),
        ("open the door", "open the \u200edoor\ufeff"),
    ],
    ids=["accents", "jamo", "nukta", "kana", "digits", "letters", "half-width", "joiner", "marks"],
)  # fmt: skip
def test_other_forms_of_the_same_text_are_the_same(text, same):
    assert text != same
    figures = text_metrics([same], [text])
    assert all(value == pytest.approx(1) for value in figures.values()) and len(figures) >= 4


def test_case_counts_for_bleu_alone():
    figures = text_metrics(["ОТКРОЙ ДВЕРЬ", "STRASSE LINKS"], ["открой дверь", "Straße links"])
    assert figures == {"rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 0, "exact_match": 1}


def test_a_set_of_several_scripts_uses_the_tokeniser_of_each():
    """sacrebleu on pairs that its own tokenisers have split; English items count as they do alone."""
    references = [
        "put the red cup on the table",
        "拿起桌上的红色杯子",
        "возьми красную чашку, пожалуйста",
        "ドアを開ける",
    ]
    texts = ["put a red cup on the table", "拿起桌上的蓝色杯子", "возьми синюю чашку, пожалуйста", "窓を開ける"]
    names = ["13a", "zh", "intl", "char"]
    assert [bleu_tokenizer(reference) for reference in references] == names
    split = [
        [BLEU(tokenize=name).tokenizer(text) for name, text in zip(names, side, strict=True)]
        for side in (texts, references)
    ]
    report = report_text(texts, references)
    expected = BLEU(tokenize="none", force=True).corpus_score(split[0], [split[1]]).score / 100
    assert report.figures["bleu"] == pytest.approx(expected)
    assert report.notes["bleu"] == "sacrebleu's 13a of 1 items, char of 1 items, intl of 1 items, zh of 1 items"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("打开冰箱 door 2", ["打", "开", "冰", "箱", "door", "2"]),
        ("拿起cup和ラーメン", ["拿", "起", "cup", "和", "ラ", "ー", "メ", "ン"]),
        ("เปิดประตู", ["เ", "ปิ", "ด", "ป", "ร", "ะ", "ตู"]),
        ("दरवाज़ा खोलो।", ["दरवाज़ा", "खोलो"]),
        ("Cup☕️s don’t", ["cup", "s", "don", "t"]),
        ("été l'eau", ["été", "l", "eau"]),
        ("٣ أكواب", ["٣", "أكواب"]),
        ("", []),
    ],
    ids=["zh", "mixed", "th", "hi", "emoji", "fr", "ar", "none"],
)  # fmt: skip
def test_words(text, words):
    assert split_words(normalise(text)) == [unicodedata.normalize("NFC", word) for word in words]


def test_actions_that_differ_in_form_alone_read_the_same():
    assert same_text("  ÉTÉ\tla") == same_text(unicodedata.normalize("NFD", "été la")) != same_text("ete la")


def test_tables_name_tokenisers_and_reasons_instead_of_zeros():
    collected = Collected(subsets=["x", "x"], ks=[1])
    report = report_text(["打", "开"], ["打", "开"])
    collected.idm["IDM", 0] = (dict(report.figures), {})
    collected.texts["IDM", 0] = report
    collected.probes["idm", "IDM", 0] = {
        "copy": Preference(1.0, 1.0, None, 2, 0),
        "inverse": Preference(0.0, 0.0, None, 2, 0),
    }
    tables = build_tables(collected) | {"judge": "none"}
    (row,) = tables["idm"]
    assert row["absent"] == {"rouge2": "no reference has two words"} and "rouge2" not in row["metrics"]
    assert row["notes"]["bleu"].startswith("sacrebleu's zh")
    text = format_tables(tables)
    assert "rouge2: absent: no reference has two words" in text and "bleu: sacrebleu's zh" in text
    assert "random_action absent of IDM (idm): no triplet has another action in its subset" in text
    found = Findings.__new__(Findings)
    object.__setattr__(found, "tables", tables)
    page = inverse_section(found) + probe_section(found)
    assert 'title="no reference has two words">–' in page and "BLEU: sacrebleu&#39;s zh" in page
    assert "ROUGE-2: absent: no reference has two words." in page
    assert "random action absent of IDM (idm): no triplet has another action in its subset." in page
