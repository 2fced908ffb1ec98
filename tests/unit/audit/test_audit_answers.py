"""Answers to an audit, of both kinds, and what is made of them."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from support.audit_data import answer_file, audit_file, draw, feedback_row, labelled_run, many_rows, sample_of

from fgaif_ray.audit.agreement import compare
from fgaif_ray.audit.human import HumanAnswer, majority_labels, read_answers
from fgaif_ray.audit.items import Audit
from fgaif_ray.audit.label_studio import CHOICES, labelling_config
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.records import FACT_TYPES, HALLUCINATED
from jobs import audit as audit_job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return labelled_run(tmp_path_factory.mktemp("audited"))


class TestAnswers:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "is not JSON"),
            ("{}", "holds no answers"),
            ('"text"', "holds no answers"),
            ('{"format": "fgaif-audit-answers", "version": 9}', "has version 9"),
            ('{"format": "fgaif-audit-answers", "version": 1}', "lacks its audit"),
            ("[]", "holds no answers"),
            ('[{"id": 1, "annotation_id": 3, "existence": "consistent"}]', "JSON-MIN"),
            ('[{"id": 1}]', "task 1 has no list of annotations"),
            ('[{"id": 1, "annotations": [], "data": {"image": "x"}}]', "task 1 is none of an audit"),
        ],
    )
    def test_each_kind_of_wrong_file_has_its_sentence(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "answers.json"
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_answers([str(path)], FACT_TYPES)

    def test_a_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="Cannot read"):
            read_answers([str(tmp_path / "none.json")], FACT_TYPES)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"labels": {"existence": "maybe"}}, "answer 1 has the label 'maybe'"),
            ({"labels": {"objects": "absent"}}, "answer 1 needs labels by type"),
            ({"labels": ["absent"]}, "answer 1 needs labels by type"),
            ({"facts": ["yes"]}, "answer 1 has the fact 'yes'"),
            ({"facts": None}, "answer 1 needs a list of facts"),
            ({"segment": "0"}, "answer 1 does not say which segment"),
            ({"segment": True}, "answer 1 does not say which segment"),
        ],
    )
    def test_each_kind_of_wrong_answer_has_its_sentence(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        answer = {"sample_id": "a", "segment": 0, "text": "t", "facts": [], "labels": {}} | change
        path = answer_file(tmp_path / "a.json", draw(many_rows(1), 1), answers=[answer])
        with pytest.raises(UserError, match=message):
            read_answers([path], FACT_TYPES)

    def test_the_same_person_twice_is_refused(self, run: Config, tmp_path: Path) -> None:
        path = answer_file(tmp_path / "a.json", sample_of(run))
        with pytest.raises(UserError, match="ann has answered about segment"):
            read_answers([path, path], FACT_TYPES)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"audit": "other"}, "answers another sample"),
            ({"answers": [{"sample_id": "a", "segment": 0, "text": "t", "facts": [], "labels": {}}]}, "not in the"),
        ],
    )
    def test_answers_to_something_else_are_refused(
        self, run: Config, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        path = answer_file(tmp_path / "a.json", sample_of(run), **change)
        with pytest.raises(UserError, match=message):
            audit_job.import_answers(run, [path])

    def test_answers_about_another_number_of_facts_are_refused(self, run: Config, tmp_path: Path) -> None:
        path = Path(answer_file(tmp_path / "a.json", sample_of(run)))
        content = json.loads(path.read_text())
        content["answers"][0]["facts"].append("right")
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match="judges 3 facts"):
            audit_job.import_answers(run, [str(path)])

    def test_unsure_and_open_answers_are_no_labels(self, tmp_path: Path) -> None:
        labels = {"existence": "unsure", "attribute": None, "relation": "absent"}
        answer = {"sample_id": "a", "segment": 0, "text": "t", "facts": ["unsure", None], "labels": labels}
        (found,) = read_answers([answer_file(tmp_path / "a.json", draw(many_rows(1), 1), answers=[answer])], FACT_TYPES)
        assert (found.labels, found.facts) == ({"relation": 0}, (None, None))

    def test_the_majority_wins_and_a_tie_does_not(self) -> None:
        votes = [(1, 1), (2, 1), (1, 2)]
        answers = [
            HumanAnswer("x", f"p{index}", "a", 0, "t", {"existence": first, "attribute": second}, None)
            for index, (first, second) in enumerate([*votes, (1, 2)])
        ]
        assert majority_labels(answers) == {("a", 0): ("t", {"existence": 1})}


class TestLabelStudio:
    def export(self, run: Config, chosen: dict[str, list[str]], **annotation: Any) -> list[dict[str, Any]]:
        """The tasks as Label Studio gives them back, all with the same choices."""
        result = [
            {"id": "x", "from_name": name, "to_name": "sub_sentence", "type": "choices", "value": {"choices": choices}}
            for name, choices in chosen.items()
        ]
        tasks = json.loads(audit_file(run, "audit_tasks.json").read_text())
        return [
            {"id": number, "annotations": [{"completed_by": 7, "result": result} | annotation], "data": task["data"]}
            for number, task in enumerate(tasks)
        ]

    def read(self, path: Path, tasks: list[dict[str, Any]]) -> list[HumanAnswer]:
        path.write_text(json.dumps(tasks))
        return read_answers([str(path)], FACT_TYPES)

    def test_every_field_of_the_configuration_is_in_the_tasks(self, run: Config) -> None:
        root = ET.fromstring(labelling_config(DEFAULT))
        wanted = {value[1:] for node in root.iter() if (value := node.get("value", "")).startswith("$")}
        for task in json.loads(audit_file(run, "audit_tasks.json").read_text()):
            assert wanted <= task["data"].keys()
        assert audit_file(run, "label_studio.xml").read_text() == labelling_config(DEFAULT)

    def test_its_choices_are_those_that_are_read(self) -> None:
        root = ET.fromstring(labelling_config(DEFAULT))
        asked = {node.get("name"): tuple(c.get("alias") for c in node) for node in root.iter("Choices")}
        assert asked == dict.fromkeys(FACT_TYPES, CHOICES)

    def test_an_export_is_read(self, run: Config, tmp_path: Path) -> None:
        tasks = self.export(run, {"existence": ["consistent"], "relation": ["unsure"]})
        answers = self.read(tmp_path / "ls.json", tasks)
        assert {answer.place for answer in answers} == {(item.sample_id, item.segment) for item in sample_of(run).items}
        assert all((a.annotator, a.labels, a.facts) == ("annotator 7", {"existence": 1}, None) for a in answers)

    def test_an_export_can_be_imported(self, run: Config, tmp_path: Path) -> None:
        path = tmp_path / "ls.json"
        path.write_text(json.dumps(self.export(run, {"existence": ["hallucinated"]})))
        audit_job.import_answers(run, [str(path)])
        found = json.loads(audit_file(run, "agreement.json").read_text())
        assert found["labels"]["existence"]["sample"]["accuracy"]["value"] == 0
        assert len(found["disagreements"]) == 16

    def test_annotators_are_named_by_their_address(self, run: Config, tmp_path: Path) -> None:
        tasks = self.export(run, {"existence": ["absent"]}, completed_by={"id": 1, "email": "a@example.org"})
        assert self.read(tmp_path / "ls.json", tasks)[0].annotator == "a@example.org"

    def test_skipped_tasks_are_left_out(self, run: Config, tmp_path: Path) -> None:
        tasks = self.export(run, {"existence": ["absent"]})
        tasks[0]["annotations"][0]["was_cancelled"] = True
        assert len(self.read(tmp_path / "ls.json", tasks)) == 15

    @pytest.mark.parametrize("choices", [["perhaps"], [], ["absent", "consistent"]])
    def test_other_choices_are_refused(self, run: Config, tmp_path: Path, choices: list[str]) -> None:
        with pytest.raises(UserError, match="not exactly one of"):
            self.read(tmp_path / "ls.json", self.export(run, {"existence": choices}))


class TestAgreement:
    def answers(self, audit: Audit, annotator: str, wrong: set[int] = frozenset()) -> list[HumanAnswer]:
        """Agrees with the AI but for the existence of some items."""
        return [
            HumanAnswer(
                audit.id,
                annotator,
                item.sample_id,
                item.segment,
                item.text,
                dict(item.labels) | ({"existence": (item.labels["existence"] + 1) % 3} if index in wrong else {}),
                tuple(item.verdicts),
            )
            for index, item in enumerate(audit.items)
        ]

    def test_weighted_accuracy_is_that_of_the_whole_set(self) -> None:
        """People find all labels of one cell wrong: its share of the set, not of the sample, is the error."""
        rows = [feedback_row(i, f"{i}.png", [("A dog.", (1, 0, 0) if i < 90 else (2, 0, 0))]) for i in range(100)]
        audit = draw(rows, 20)
        wrong = {index for index, item in enumerate(audit.items) if item.labels["existence"] == HALLUCINATED}
        found = compare(audit, self.answers(audit, "a", wrong), draws=20)["labels"]["existence"]
        assert len(wrong) == 10
        assert found["sample"]["accuracy"]["value"] == pytest.approx(0.5)
        assert found["weighted"]["accuracy"]["value"] == pytest.approx(0.9)
        assert found["covered"] == 1

    def test_several_people_are_compared_with_each_other(self) -> None:
        audit = draw(many_rows(30), 40)
        answers = [*self.answers(audit, "a"), *self.answers(audit, "b", {0, 1}), *self.answers(audit, "c", {1})]
        found = compare(audit, answers, draws=20)["labels"]
        assert found["existence"]["by_class"]["accuracy"] == pytest.approx(39 / 40)
        assert 0.9 < found["existence"]["sample"]["alpha_of_people"]["value"] < 1
        assert found["relation"]["sample"]["alpha_of_people"]["value"] == pytest.approx(1)

    def test_ties_and_missing_answers_are_counted_and_left_out(self) -> None:
        audit = draw(many_rows(30), 10)
        answers = [*self.answers(audit, "a")[1:], *self.answers(audit, "b", {3})[1:]]
        found = compare(audit, answers, draws=20)["labels"]["existence"]
        assert (found["compared"], found["unanswered"], found["tied"]) == (8, 1, 1)

    def test_one_person_has_no_alpha_among_people(self) -> None:
        audit = draw(many_rows(30), 10)
        found = compare(audit, self.answers(audit, "a"), draws=20)
        assert "alpha_of_people" not in found["labels"]["existence"]["sample"]

    def test_disagreements_say_what_was_disagreed_about(self) -> None:
        audit = draw([feedback_row(0, "a.png", [("A dog.", (1, 0, 0))])], 1)
        (found,) = compare(audit, self.answers(audit, "a", {0}), draws=20)["disagreements"]
        assert (found["type"], found["ai"], found["people"]) == ("existence", "consistent", "hallucinated")
        assert found["facts"] == [{"text": "existence of A dog.", "consistent": True}]

    def test_the_table_has_a_line_for_each_type(self) -> None:
        audit = draw(many_rows(30), 20)
        lines = audit_job.agreement_table(compare(audit, self.answers(audit, "a"), draws=20))
        assert [line.split("  ")[0] for line in lines[1:-1]] == [
            f"{name} {what}" for what in ("labels", "facts") for name in FACT_TYPES
        ]
