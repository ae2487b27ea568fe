"""Lessons: what a question set becomes, where its evidence lies then, and files of lessons."""

import dataclasses
import json

import pytest
import tiny

from memo.clues import LINES
from memo.errors import SettingsError
from memo.evaluate import data
from memo.passages import sentences
from memo.train import lessons
from memo.train.lessons import NOTHING, TOGETHER, Asked, Lesson

ENGINE = tiny.tokenizer().backend_tokenizer
TEXTS = {
    "mill": "The mill stood at the bend. Anna Okafor bought it in 1887. Nobody knew why.",
    "anna": "Anna Okafor was a baker. She was born in Lund,  by the sea. Her son was Piet.",
    "bridge": "The bridge was old. A flood took it in 1903. It was “rebuilt” — stone by stone.",
    "ferry": "A ferry crossed the lake. It sank.",
    "school": "The school had two rooms. It had forty children, and in winter a stove. One teacher taught them all.",
}
TITLES = {"mill": "The mill", "anna": "Anna Okafor", "bridge": "The bridge", "ferry": "The ferry", "school": "A school"}
HOPS = {
    "id": "hops", "doc_id": "mill", "doc_ids": list(TEXTS), "gold_doc_ids": ["mill", "anna"],
    "question": "Where was she who bought the mill born?", "answers": ["Lund", "in Lund"],
    "evidence": ["Anna Okafor bought it in 1887.", "She was born in Lund, by the sea."],
    "triples": [["the mill", "buyer", "Anna Okafor"], ["Anna Okafor", "place of birth", "Lund"]],
}  # fmt: skip
PARAGRAPH = {
    "id": "paragraph", "doc_id": "bridge", "doc_ids": list(TEXTS), "gold_doc_ids": ["bridge"],
    "question": "When did the bridge fall?", "answers": ["1903"], "evidence": [TEXTS["bridge"]],
}  # fmt: skip
LEFT_OUT = [
    {**PARAGRAPH, "id": "no answer", "answers": []},
    {**PARAGRAPH, "id": "no evidence", "evidence": ["It stands nowhere."]},
]
MILLERS = ["Olga", "Åke", "Bo", "지훈", "Ines", "Ravi", "Émile", "Tadeusz", "Wu", "Noor", "Sten", "Kai"]


def offsets(text):
    return ENGINE.encode(text, add_special_tokens=False).offsets


def question_set(folder, docs, asked, context="question"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("docs", docs), ("dev", asked)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return data.load(folder, "dev", context, each=0)


@pytest.fixture
def several(tmp_path):
    """Questions of several short documents each."""
    docs = [{"doc_id": key, "title": TITLES[key], "text": text} for key, text in TEXTS.items()]
    return question_set(tmp_path / "several", docs, [HOPS, PARAGRAPH, *LEFT_OUT])


def entry(year):
    miller = MILLERS[year % len(MILLERS)]
    return f"In the spring of {year} the miller was {miller} of house {year - 1700}, who sold {year % 7 + 2} sacks."


def chronicle(folder, evidence):
    """One long document of 24 paragraphs, and two questions about each year. evidence: of a year."""
    docs, asked = [], []
    for number in range(24):
        years = range(1800 + 4 * number, 1804 + 4 * number)
        key = f"chronicle/{number}"
        docs.append({"doc_id": key, "title": "Chronicle", "text": " ".join(map(entry, years))})
        for year in years:
            more = {"answers": [f"house {year - 1700}"], "evidence": evidence(year)}
            asked += [{"id": f"{year} {i}", "doc_id": key, "question": f"{i}: {year}?", **more} for i in (1, 2)]
    return question_set(folder, docs, asked, "group")


def made(found, most=10_000, seed=0, triples=None):
    return list(lessons.from_questions(found, offsets, most, triples or {}, seed))


def only(found, name, most=10_000, seed=0):
    """The lesson of a question of several documents, by its id."""
    text = {"hops": HOPS, "paragraph": PARAGRAPH}[name]["question"]
    triples = {"hops": HOPS["triples"]}
    [lesson] = [one for one in made(found, most, seed, triples) if one.questions[0].question == text]
    return lesson


def evidence_of(lesson, asked):
    return [lesson.documents[number][start:end] for number, start, end in asked.evidence]


def sizes(texts):
    return [len(offsets(text)) for text in texts]


# --- several documents -----------------------------------------------------------------------------------------------


def whole(key):
    return f"{TITLES[key]}\n\n{TEXTS[key]}"


@pytest.mark.parametrize("most", [1, 64, 250, 320, 400, 10_000])
@pytest.mark.parametrize(("name", "gold"), [("hops", {"mill", "anna"}), ("paragraph", {"bridge"})])
def test_gold_documents_are_always_there_and_others_while_there_is_room(several, name, gold, most):
    orders, every = set(), set(map(whole, TEXTS))
    for seed in range(8):
        documents = only(several, name, most, seed).documents
        there = set(documents)
        assert len(there) == len(documents) and set(map(whole, gold)) <= there <= every
        used, others = sum(sizes(documents)), len(there) - len(gold)
        assert used <= most or not others
        assert there == every or used + max(sizes(every - there)) >= most
        orders.add(documents)
    assert len(orders) > 1 or len(documents) == 1
    if most == 10_000:
        assert there == every


@pytest.mark.parametrize("most", [1, 300, 10_000])
def test_evidence_is_where_it_stands_in_the_lessons_documents(several, most):
    for seed in range(5):
        hops, paragraph = (only(several, name, most, seed) for name in ("hops", "paragraph"))
        assert evidence_of(hops, *hops.questions) == [
            "Anna Okafor bought it in 1887.", "She was born in Lund,  by the sea.",
        ]  # fmt: skip
        assert evidence_of(paragraph, *paragraph.questions) == [TEXTS["bridge"]]


def test_clues_of_a_question_of_several_documents(several):
    [asked] = only(several, "hops").questions
    assert asked.answers == ("Lund", "in Lund")
    assert asked.clues["span"] == ("Anna Okafor bought it in 1887.", "She was born in Lund, by the sea.")
    assert asked.clues["question"] == (
        "What is the buyer of the mill?", "What is the place of birth of Anna Okafor?",
    )  # fmt: skip
    assert asked.clues["draft"] == ("Lund",)
    assert set(asked.clues["key"][:2]) == {"The mill", "Anna Okafor"} and asked.clues["key"][2:] == ("Lund",)


def test_of_a_paragraph_the_sentence_with_the_answer_is_the_clue_and_a_lone_title_is_none(several):
    [asked] = only(several, "paragraph").questions
    assert asked.clues == {"span": ("A flood took it in 1903.",), "draft": ("1903",)}


def test_a_long_answer_is_no_key(tmp_path):
    docs = [{"doc_id": key, "title": TITLES[key], "text": text} for key, text in TEXTS.items()]
    long = "She was born in Lund, " + "far " * 30
    [lesson] = made(question_set(tmp_path / "long", docs, [{**HOPS, "answers": [long]}]))
    assert set(lesson.questions[0].clues["key"]) == {"The mill", "Anna Okafor"}


@pytest.mark.parametrize("answer", ["Lund", "She was born in Lund, " + "far " * 30], ids=["short", "long"])
def test_keys_are_a_few_titles_and_the_answer_last(tmp_path, answer):
    docs = [{"doc_id": key, "title": TITLES[key], "text": text} for key, text in TEXTS.items()]
    evidence = [text.split(".")[0] for text in TEXTS.values()]
    every = {**HOPS, "answers": [answer], "gold_doc_ids": list(TEXTS), "evidence": evidence}
    [lesson] = made(question_set(tmp_path / "set", docs, [every]))
    keys = lesson.questions[0].clues["key"]
    assert len(set(keys)) == len(keys) == LINES < len(TEXTS)
    titles = keys[:-1] if answer == "Lund" else keys
    assert set(titles) <= set(TITLES.values()) and (keys[-1] == "Lund") == (answer == "Lund")


@pytest.mark.parametrize(
    ("answer", "text", "span"),
    [
        ("1903", "It has 19035 stones. A flood took it in 1903.", "A flood took it in 1903."),
        ("war", "A warden kept it. It fell in the war.", "It fell in the war."),
        ("the old bridge's end", "It was old. THE old\nbridge’s  end was near.", "THE old bridge’s end was near."),
    ],
    ids=["a longer number", "a longer word", "case, spaces and quotes"],
)
def test_the_sentence_with_the_answer_has_it_as_a_word_of_its_own_in_any_form(tmp_path, answer, text, span):
    docs = [{"doc_id": key, "title": TITLES[key], "text": text} for key, text in {**TEXTS, "bridge": text}.items()]
    found = question_set(tmp_path / "set", docs, [{**PARAGRAPH, "answers": [answer], "evidence": [text]}])
    assert made(found)[0].questions[0].clues["span"] == (span,)


def test_questions_without_answer_or_evidence_are_left_out(several):
    assert len(several.questions) == 4
    asked = [one.question for lesson in made(several) for one in lesson.questions]
    assert sorted(asked) == sorted([HOPS["question"], PARAGRAPH["question"]])


# --- a long document -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [200, 700, 3000, 100_000])
def test_every_question_of_a_long_document_is_in_one_lesson(tmp_path, most):
    found = chronicle(tmp_path / "set", lambda year: [])  # the evidence is the answer: a few letters
    text = found.questions[0].shelf.documents[0].text
    wanted = sorted(question.text for question in found.questions)
    assert len(wanted) == 192
    for seed in range(3):
        lessons_of = made(found, most, seed)
        assert sorted(asked.question for lesson in lessons_of for asked in lesson.questions) == wanted
        for lesson in lessons_of:
            [stretch] = lesson.documents
            assert stretch in text and len(offsets(stretch)) <= most
            assert 1 <= len(lesson.questions) <= TOGETHER
            for asked in lesson.questions:
                assert evidence_of(lesson, asked) == list(asked.answers)
    assert (max(len(lesson.questions) for lesson in lessons_of) == TOGETHER) == (most > 600)


def test_stretches_begin_and_end_with_sentences_and_are_drawn(tmp_path):
    found = chronicle(tmp_path / "set", lambda year: [])
    text = found.questions[0].shelf.documents[0].text
    starts, ends = (set(marks) for marks in zip(*sentences(text), strict=True))
    for stretch in (lesson.documents[0] for seed in range(3) for lesson in made(found, 700, seed)):
        begin = text.index(stretch)
        assert begin in starts and begin + len(stretch) in ends
    before = [lesson.questions[0].evidence[0][1] for lesson in made(found, 700)]
    assert min(before) < 200 and max(before) > 400  # characters before the evidence


@pytest.mark.parametrize("most", [200, 700])
def test_a_clue_of_a_long_document_is_the_sentence_that_holds_the_evidence(tmp_path, most):
    for lesson in made(chronicle(tmp_path / "set", lambda year: []), most):
        [stretch] = lesson.documents
        for asked in lesson.questions:
            [(_, start, end)] = asked.evidence
            [holds] = [stretch[a:b] for a, b in sentences(stretch) if a <= start and end <= b]
            assert asked.clues == {"span": (holds,), "draft": asked.answers}


@pytest.mark.parametrize("most", [250, 280, 300, 500, 700, 2048])
def test_a_clue_is_a_whole_sentence_of_the_document(tmp_path, most):
    whole_ones = {entry(year) for year in range(1800, 1900)}
    for seed in range(3):
        for lesson in made(chronicle(tmp_path / "set", lambda year: []), most, seed):
            for asked in lesson.questions:
                assert set(asked.clues["span"]) <= whole_ones


@pytest.mark.parametrize(
    ("most", "evidence"),
    [(250, lambda year: [entry(year)]), (500, lambda year: [entry(year), entry(year ^ 1)])],
    ids=["a sentence", "two, in any order"],
)
def test_no_question_is_lost_whose_evidence_fits_a_lesson(tmp_path, most, evidence):
    found = chronicle(tmp_path / "set", evidence)  # a third of a lesson
    for seed in range(3):
        asked = [one.question for lesson in made(found, most, seed) for one in lesson.questions]
        assert sorted(asked) == sorted(question.text for question in found.questions)


def test_evidence_that_is_longer_than_a_lesson_is_left_out_and_nothing_else(tmp_path):
    found = chronicle(tmp_path / "set", lambda year: [] if year % 4 else [" ".join(map(entry, range(year, year + 4)))])
    asked = {one.question for lesson in made(found, 200) for one in lesson.questions}
    assert asked == {question.text for question in found.questions if int(question.text[3:7]) % 4}


# --- both ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_lessons(tmp_path, several):
    for found in (several, chronicle(tmp_path / "set", lambda year: [])):
        assert made(found, 300, 1) == made(found, 300, 1) != made(found, 300, 2)


def test_a_question_of_elsewhere_has_no_answer_here():
    here, there = (
        Lesson((text,), tuple(Asked(f"{text} {i}?", ("yes",), ((0, 0, 2),), {"span": (text,)}) for i in range(2)))
        for text in ("here", "there")
    )
    lesson = lessons.elsewhere(here, there)
    assert lesson.documents == here.documents and lesson.questions[:-1] == here.questions
    unknown = lesson.questions[-1]
    assert unknown == Asked("there 0?", (), (), {"draft": (NOTHING,)})


def about(text, *answers):
    """A lesson on that text, with a question for each answer."""
    return Lesson((text,), tuple(Asked(f"{one}?", (one,), ()) for one in answers))


def test_a_question_whose_answer_stands_here_is_none_of_elsewhere():
    here = Lesson(("Sold in 1887.", "ANNA\nOkafor’s  mill had 19035 stones."), ())
    asked = Lesson(("There.",), (Asked("No answer?", (), ()), Asked("Two?", ("Piet", "1887"), ())))
    for answer in ("1887", "Anna Okafor's mill"):  # in whatever form
        assert lessons.elsewhere(here, about("There.", answer)) == here
    assert lessons.elsewhere(here, asked) == here
    [unknown] = lessons.elsewhere(here, about("There.", "1887", "1903", "Piet")).questions
    assert unknown.question == "1903?"  # the first that stands nowhere; within a longer number it does not stand
    assert lessons.elsewhere(here, Lesson(("There.",), ())) == here


@pytest.mark.parametrize("more", ["", " Both baked."], ids=["the lesson itself", "a stretch that overlaps"])
def test_a_question_whose_evidence_stands_here_is_none_of_elsewhere(more):
    text = "Ada and Bo were Danes."
    lesson, other = (
        Lesson((one,), (Asked("Were both Danes?", ("yes",), ((0, 0, len(text)),)),)) for one in (text, text + more)
    )
    assert lessons.elsewhere(lesson, other) == lesson


# --- files -----------------------------------------------------------------------------------------------------------


def test_lessons_come_back_from_a_file(tmp_path, several):
    written = made(several, triples={"hops": HOPS["triples"]})
    odd = Lesson(("방앗간\u2028 \x85 “x”\r\n\x0c",), (Asked("누가?", ("é",), ((0, 1, 3),)), Asked("q", (), ())))
    written += [odd, lessons.elsewhere(*written)]
    path = tmp_path / "new" / "folder" / "lessons.jsonl"
    lessons.write(path, written)
    assert lessons.load(path) == written
    assert [one.name for one in path.parent.iterdir()] == ["lessons.jsonl"]
    first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
    assert first == json.loads(json.dumps(dataclasses.asdict(written[0])))


GOOD = {"documents": ["The mill."], "questions": [{"question": "What?"}]}
ASKED = GOOD["questions"][0]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"documents": ["a"', ""),
        ("", ""),
        ("[]", ""),
        ("3", ""),
        (b"\xff\xfe", ""),
        ({"questions": [ASKED]}, "documents"),
        ({"documents": ["a"]}, "questions"),
        ({**GOOD, "questions": [{"answers": ["a"]}]}, "question"),
        ({**GOOD, "questions": []}, "no question"),
        ({**GOOD, "documents": []}, "no document"),
        ({**GOOD, "questions": [{**ASKED, "clues": {"hint": ["a"]}}]}, "'hint'"),
        ({**GOOD, "questions": [{**ASKED, "clues": ["span"]}]}, ""),
        ({**GOOD, "documents": "The mill."}, "no list"),
        ({**GOOD, "documents": ["The mill.", None]}, "no list"),
        ({**GOOD, "documents": ["The mill.", " \n"]}, "empty text"),
        ({**GOOD, "questions": [{**ASKED, "answers": "a"}]}, "no list"),
        ({**GOOD, "questions": [{**ASKED, "answers": [1887]}]}, "no list"),
        ({**GOOD, "questions": [{**ASKED, "answers": [""]}]}, "empty text"),
        ({**GOOD, "questions": [{**ASKED, "clues": {"span": "a"}}]}, "no list"),
        ({**GOOD, "questions": [{**ASKED, "clues": {"span": ["a", " "]}}]}, "empty text"),
        *(({**GOOD, "questions": [{"question": one}]}, "") for one in (None, " ", ["a"])),
        ({**GOOD, "questions": [{**ASKED, "evidence": [[0, 4, 10]]}]}, "evidence outside"),
        ({**GOOD, "questions": [{**ASKED, "evidence": [[1, 0, 2]]}]}, "evidence outside"),
        ({**GOOD, "questions": [{**ASKED, "evidence": [[0, -1, 2]]}]}, "evidence outside"),
        ({**GOOD, "questions": [{**ASKED, "evidence": [[0, 2, 2]]}]}, "evidence outside"),
        ({**GOOD, "questions": [{**ASKED, "evidence": [[0, 2]]}]}, ""),
    ],
)
def test_what_is_no_lesson_is_refused_with_its_line(tmp_path, line, told):
    path = tmp_path / "lessons.jsonl"
    bad = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    path.write_bytes(2 * (json.dumps(GOOD).encode() + b"\n") + bad + b"\n")
    with pytest.raises(SettingsError, match=rf"(Line 3 of .*lessons\.jsonl|lessons\.jsonl).*{told}") as error:
        lessons.load(path)
    assert "Line 3" in str(error.value) or isinstance(line, bytes)  # a file is decoded some lines ahead


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.jsonl cannot be read"):
        lessons.load(tmp_path / "nowhere.jsonl")
