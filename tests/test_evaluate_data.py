"""Question sets: shelves, groups and evidence, from files and from sets of the hub."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from memo.errors import SettingsError
from memo.evaluate import data, hub

EXAMPLES = Path(__file__).parents[1] / "assets" / "examples"
DOCS = [
    {"doc_id": "v1/mill/0", "title": "The mill", "text": "The mill stood at the bend.  Anna bought it in 1887."},
    {"doc_id": "v1/mill/1", "title": "The mill", "text": "Its wheel had nine “blades” of oak. Yes. Anna sold it."},
    {"doc_id": "v2/mill/0", "title": "The mill", "text": "Another version of the same article, bought in 1887."},
    {"doc_id": "bridge", "title": "", "text": "The bridge fell in 1903. Yes. Yes."},
]
QUESTIONS = [
    {"id": "q1", "doc_id": "v1/mill/0", "question": "Who bought it?", "answers": ["Anna"], "evidence": []},
    {"id": "q2", "doc_id": "v1/mill/1", "question": "How many blades?", "answers": ["nine"],
     "evidence": ['its wheel had  nine "blades"', "Yes."]},
    {"id": "q3", "doc_id": "bridge", "question": "When did it fall?", "answers": ["1903"], "evidence": [], "kind": "x"},
    {"id": "q4", "doc_id": "bridge", "question": "Who built it?", "answers": [], "evidence": [], "answerable": False},
    {"id": "q5", "doc_id": None, "question": "Nowhere?", "answers": ["no"], "evidence": []},
    {"id": "q6", "doc_id": "bridge", "doc_ids": ["bridge", "v1/mill/0"], "gold_doc_ids": ["v1/mill/0"],
     "question": "Both?", "answers": ["1887"], "evidence": ["Anna bought it in 1887."]},
]  # fmt: skip


def write(folder, name, lines, packed=False):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if packed:
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "set", "docs", DOCS, packed=True)
    return write(tmp_path / "set", "dev", QUESTIONS)


def by_id(questions):
    return {question.id: question for question in questions.questions}


def told(question):
    """Evidence as the texts it points to."""
    texts = {document.id: document.text for document in question.shelf.documents}
    return [[texts[d][a:b] for d, a, b in piece] for piece in question.evidence]


def test_the_paragraphs_of_an_article_become_one_document_in_their_order(folder):
    asked = by_id(data.load(folder, "dev", "group"))
    assert set(asked) == {"q1", "q2", "q3", "q4", "q6"}  # q5 has no document
    [mill] = asked["q1"].shelf.documents
    assert mill.text == f"The mill\n\n{DOCS[0]['text']}\n\n{DOCS[1]['text']}"  # v2 has the same title, but is another
    assert asked["q2"].shelf is asked["q1"].shelf
    assert asked["q3"].shelf.documents[0].text == DOCS[3]["text"]


def test_a_question_has_its_candidates_and_a_corpus_all(folder):
    one = by_id(data.load(folder, "dev", "question"))
    assert [d.text for d in one["q6"].shelf.documents] == [DOCS[3]["text"], f"The mill\n\n{DOCS[0]['text']}"]
    assert one["q1"].shelf.documents[0].id == one["q6"].shelf.documents[1].id  # the same document has the same id
    every = by_id(data.load(folder, "dev", "corpus"))
    assert len(every["q1"].shelf.documents) == 4 and every["q1"].shelf is every["q3"].shelf  # v2, too: nobody asks it


def test_evidence_is_found_whatever_spaces_quotes_and_case(folder):
    asked = by_id(data.load(folder, "dev", "group"))
    # "Yes." stands once in the question's own paragraph, though more often elsewhere
    assert told(asked["q2"]) == [["Its wheel had nine “blades”"], ["Yes."]]
    assert asked["q6"].evidence == ()  # it stands in a document that is not there
    assert told(by_id(data.load(folder, "dev", "question"))["q6"]) == [["Anna bought it in 1887."]]


def test_without_evidence_it_is_the_answer_in_the_questions_own_paragraph(folder):
    asked = by_id(data.load(folder, "dev", "group"))
    assert told(asked["q1"]) == [["Anna"]]  # not the Anna of the other paragraph
    assert not asked["q4"].answerable and asked["q4"].evidence == ()


def test_evidence_that_stands_in_several_places_is_left_out_beside_evidence_that_does_not(tmp_path):
    write(tmp_path / "set", "docs", [{"doc_id": "m", "title": "", "text": "Yes.\nA: the buttons are yellow.\nYes."}])
    line = {"id": "1", "doc_id": "m", "question": "Colour?", "answers": [], "evidence": ["Yes.", "the buttons"]}
    write(tmp_path / "set", "dev", [line, line | {"id": "2", "evidence": ["Yes."]}])
    asked = by_id(data.load(tmp_path / "set", "dev", "group"))
    assert told(asked["1"]) == [["the buttons"]]
    assert told(asked["2"]) == [["Yes.", "Yes."]]


def test_a_number_is_not_found_inside_a_longer_one():
    assert not data.loose("1887").search("11887 18875")
    for wording, text in (("방앗간", "방앗간에 갔다"), ("1887", "1887년에"), ("KBS", "KBS에서"), ("3", "3월")):
        assert data.loose(wording).search(text)  # a Korean particle may follow
    assert not data.loose("3").search("1983년") and not data.loose("KBS").search("KBSN")


def test_a_part_that_repeats_the_title_or_another_part_is_found_where_it_stands(tmp_path):
    parts = ["Anna", "Anna bought it.", "Anna"]
    write(tmp_path / "set", "docs", [{"doc_id": f"a/{i}", "title": "Anna", "text": t} for i, t in enumerate(parts)])
    asked = [{"id": f"{i}", "doc_id": f"a/{i}", "question": "Who?", "answers": ["Anna"]} for i in range(3)]
    write(tmp_path / "set", "dev", asked)
    found = by_id(data.load(tmp_path / "set", "dev", "group"))
    starts = [found[f"{i}"].evidence[0][0][1] for i in range(3)]
    assert starts == [6, 12, 29] and found["0"].shelf.documents[0].text == "Anna\n\nAnna\n\nAnna bought it.\n\nAnna"


def test_a_limit_draws_shelves_and_some_questions_of_each(tmp_path):
    docs = [{"doc_id": f"d{i}", "title": "", "text": f"Text {i}."} for i in range(10)]
    asked = [
        {"id": f"{i}-{j}", "doc_id": f"d{i}", "question": "What?", "answers": ["Text"], "evidence": []}
        for i in range(10) for j in range(6)
    ]  # fmt: skip
    write(write(tmp_path / "set", "docs", docs), "dev", asked)
    load = lambda **more: [q.id for q in data.load(tmp_path / "set", "dev", "group", **more).questions]  # noqa: E731
    few = load(limit=8, each=2)
    assert len(few) == 8 and len({name.split("-")[0] for name in few}) == 4
    assert few == load(limit=8, each=2) != load(limit=8, each=2, seed=1)
    assert load(limit=20, each=2)[:8] == few  # a higher limit adds to a lower one
    assert len(load(each=0)) == 60


def test_only_questions_with_a_field_are_drawn(folder):
    assert list(by_id(data.load(folder, "dev", "group", where=("kind", "x")))) == ["q3"]


def test_the_language_is_the_questions(tmp_path, folder):
    write(tmp_path / "ko", "docs", [{"doc_id": "a", "title": "강", "text": "강이 얼었다."}])
    write(tmp_path / "ko", "dev", [{"id": "1", "doc_id": "a", "question": "무엇이 얼었나?", "answers": ["강"]}])
    assert data.load(tmp_path / "ko", "dev", "group").language == "ko"
    assert data.load(folder, "dev", "group").language == "en"


def test_bad_sets_are_refused_by_what_is_wrong(tmp_path, folder):
    with pytest.raises(SettingsError, match=r"no test\.jsonl.*There are: dev"):
        data.load(folder, "test", "group")
    (folder / "cut.jsonl.gz").write_bytes((folder / "docs.jsonl.gz").read_bytes()[:60])
    with pytest.raises(SettingsError, match=r"cut\.jsonl\.gz cannot be read"):
        data.load(folder, "cut", "group")
    (folder / "text.jsonl").write_text('{"id": 1}\nno json\n')
    with pytest.raises(SettingsError, match="at line 2"):
        data.load(folder, "text", "group")
    write(folder, "fields", [{"doc_id": "bridge", "id": "1"}])
    with pytest.raises(SettingsError, match="expected fields"):
        data.load(folder, "fields", "group")
    write(folder, "none", [QUESTIONS[4]])
    with pytest.raises(SettingsError, match="has a document"):
        data.load(folder, "none", "group")
    write(folder, "twice", [QUESTIONS[0], QUESTIONS[0]])
    with pytest.raises(SettingsError, match="'q1' comes twice"):
        data.load(folder, "twice", "group")
    (folder / "latin.jsonl").write_bytes('{"id": "é"}\n'.encode("latin-1"))
    with pytest.raises(SettingsError, match="at line 1: it is not UTF-8"):
        data.load(folder, "latin", "group")
    (folder / "list.jsonl").write_text('{"id": 1}\n[1]\n')
    with pytest.raises(SettingsError, match="at line 2: it is no JSON object"):
        data.load(folder, "list", "group")


def test_one_text_in_the_place_of_a_list_is_a_list_of_one(tmp_path, folder):
    line = {"id": "1", "doc_id": "bridge", "question": "When?", "answers": "1903", "evidence": "The bridge fell"}
    write(folder, "plain", [line, {"id": "2", "doc_id": "bridge", "question": "Who built it?", "answers": []}])
    asked = by_id(data.load(folder, "plain", "group"))
    assert asked["1"].answers == ("1903",) and told(asked["1"]) == [["The bridge fell"]]
    assert asked["1"].answerable and not asked["2"].answerable  # without answers there is none


def test_questions_without_a_document_are_counted(folder):
    assert data.load(folder, "dev", "group").skipped == 1
    assert data.load(folder, "dev", "group", where=("kind", "x")).skipped == 0


# --- sets of the hub, as local files that `datasets` reads -----------------------------------------------------------


def test_without_the_library_sets_of_the_hub_are_refused_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    told = r'^Sets of the hub need the library datasets\. pip install "memo\[evaluate\]"$'
    with pytest.raises(SettingsError, match=told):
        hub.fetch("hub:org/set", "train", tmp_path)


SQUAD = {"id": "s", "title": "Mill", "context": "Anna bought it.", "question": "Who?",
         "answers": {"text": ["Anna"], "answer_start": [0]}}  # fmt: skip
HOTPOT = {
    "id": "h", "question": "Who froze?", "answer": "the river",
    "context": {"title": ["Mill", "River"], "sentences": [["It slept."], ["It ran.", " It froze."]]},
    "supporting_facts": {"title": ["River", "River"], "sent_id": [1, 9]},
}  # fmt: skip
LONG = {"_id": "l", "input": "Who?", "context": "Long text. Anna bought it.", "answers": ["Anna"], "length": 5}
MUSIQUE = {
    "id": "m", "question": "Who?", "answer": "Anna", "answer_aliases": ["A."], "answerable": True,
    "paragraphs": [{"title": "Mill", "paragraph_text": "Anna.", "is_supporting": True},
                   {"title": "River", "paragraph_text": "No.", "is_supporting": False}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("row", "documents", "evidence"),
    [(SQUAD, 1, [["Anna"]]), (HOTPOT, 2, [["It froze."]]), (LONG, 1, [["Anna"]]), (MUSIQUE, 2, [["Anna."]])],
)
def test_sets_of_the_hub_become_folders(tmp_path, monkeypatch, row, documents, evidence):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "source", "train", [row])
    folder = hub.fetch(f"hub:{source}", "train", tmp_path)
    [question] = data.load(folder, "train", "question").questions
    assert len(question.shelf.documents) == documents
    assert told(question) == evidence
    assert question.id == row.get("id", row.get("_id"))
    assert hub.fetch(f"hub:{source}", "train", tmp_path) == folder


def test_a_set_of_the_hub_with_other_columns_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    source = write(tmp_path / "source", "train", [{"text": "Only text."}])
    with pytest.raises(SettingsError, match=r"columns that are not known \(text\)"):
        hub.fetch(f"hub:{source}", "train", tmp_path)
    with pytest.raises(SettingsError, match="cannot be loaded"):
        hub.fetch(f"hub:{tmp_path / 'nothing'}", "train", tmp_path)
    with pytest.raises(SettingsError, match="names no set"):
        hub.fetch("hub:", "train", tmp_path)


def test_the_examples_are_a_question_set():
    found = data.load(EXAMPLES, "en", "group", where=("indirect", "True"))
    assert found.language == "en" and found.given and not found.skipped
    assert len({question.shelf.key for question in found.questions}) == 3
    for question in found.questions:
        assert question.evidence and question.answers
        text = question.shelf.documents[0].text
        assert all(text[start:end] for piece in question.evidence for _, start, end in piece)
    assert data.load(EXAMPLES, "ko", "group").language == "ko"


def test_a_file_without_questions_is_refused(tmp_path):
    (tmp_path / "a.questions.json").write_text("[]")
    with pytest.raises(SettingsError, match="holds no questions"):
        data.load(tmp_path, "en", "group")
