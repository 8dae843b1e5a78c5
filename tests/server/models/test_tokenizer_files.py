"""The effective tokenizer of a folder; tests/model compares it with the library's own."""

from pathlib import Path

import pytest
from isogloss_server.errors import UnsupportedModelError

from tests.support.packed import load
from tests.support.tokenizer_folders import AGREE, DIFFER, REFUSED, bert, effective, write


@pytest.mark.parametrize("name", AGREE)
def test_files_that_agree_have_no_difference(name: str, tmp_path: Path) -> None:
    """Other words for the same tokenizer do not change the space."""
    assert effective(write(AGREE[name], tmp_path / "model"))[1] == ""


@pytest.mark.parametrize("name", DIFFER)
def test_files_that_disagree_have_a_difference(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever may change tokens is found, and logged."""
    assert effective(write(DIFFER[name], tmp_path / "model"))[1] != ""
    assert "tokenizer.json and the settings of its class differ" in caplog.text


def test_the_settings_of_the_class_are_used(tmp_path: Path) -> None:
    """Without a normalizer in tokenizer.json, an uncased BERT is uncased all the same, and has another space."""
    agreeing = load(bert(tmp_path / "agreeing"), "f32")
    folder = write(DIFFER["bert, no normalizer"], tmp_path / "model")
    tokenizer, _ = effective(folder)
    assert tokenizer.encode("GOOD MÓRNING").tokens == tokenizer.encode("good morning").tokens
    assert tokenizer.encode("good").tokens[0] == "[CLS]"
    assert load(folder, "f32").card.space_id != agreeing.card.space_id


@pytest.mark.parametrize("name", REFUSED)
def test_a_tokenizer_that_is_not_reproduced_is_left_to_the_library(name: str, tmp_path: Path) -> None:
    """The openvino backend rejects the folder with the reason, so that the other backend may serve it."""
    case, expected = REFUSED[name]
    folder = write(case, tmp_path / "model")
    with pytest.raises(UnsupportedModelError) as raised:
        effective(folder)
    assert expected in str(raised.value)
