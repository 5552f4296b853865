"""Words that a text encoder never learnt are named, where its tokenizer lists those that it has."""

import json
import warnings

import pytest
import torch
from transformers import CLIPTokenizer

from fewstep import assets
from fewstep.commands.generate import Generate, generate
from fewstep.commands.inspect import describe
from fewstep.data.worlds.gallery import Gallery
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.models import scenes_model
from fewstep.models.loading import load_latent_model
from fewstep.models.model_files import stage_tokenizer
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.models.vocabulary import EXAMPLES, WORDS, Vocabulary, find_vocabulary, parse_vocabulary
from miniatures import save_miniature

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundled():
    return load_pipeline(assets.SCENES_LCM, "cpu")


def list_warnings(pipeline, *prompts):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline(prompts, steps=1)
    return [str(each.message) for each in caught]


@pytest.mark.parametrize("source", assets.MODELS)
def test_the_bundled_models_know_every_word_of_the_scenes_and_no_other(source):
    vocabulary = find_vocabulary(load_latent_model(source, CPU).conditioner)
    captions = [Scenes(seed=8, split="all").prompt(i)[0] for i in range(2000)]
    assert vocabulary.find_unknown(captions) == []
    assert set(vocabulary.words) == {word for caption in captions for word in caption.split()}
    assert set(vocabulary.examples) <= {Scenes().prompt(i)[0] for i in range(100)}


def test_every_listed_word_is_one_token():
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    words = parse_vocabulary(tokenizer.init_kwargs).words
    assert {len(tokenizer(word).input_ids) for word in words} == {3}
    assert len(tokenizer("cat").input_ids) > 3


def test_python_names_unknown_words_with_the_nearest_and_what_can_be_asked(bundled):
    (said,) = list_warnings(bundled, "a red cricle", "a CAT")
    assert said.startswith(
        'this model\'s text encoder never learnt the words "cricle" (did you mean "circle"?), "cat"; '
        'it knows 38 others, which `fewstep inspect scenes-lcm` lists; for example "a cyan star", "a '
    )
    assert "\n" not in said
    assert list_warnings(bundled, "A Red star, on white.", "a small pink heart") == []


def test_the_command_names_them_on_one_line(tmp_path, capsys):
    generate(Generate(prompt=("a cat",), steps=1, out=tmp_path / "pictures"))
    shown = capsys.readouterr()
    (first,), (second,) = (each.splitlines() for each in (shown.err, shown.out))
    assert first.startswith('warning: this model\'s text encoder never learnt the word "cat"; it knows 38 others, ')
    assert second.endswith("a-cat-seed0.png")
    (listed,) = (line for line in describe(assets.scenes_lcm()) if line.startswith("words that it knows: "))
    assert listed.split(": ")[1].split(", ") == list(load_pipeline(assets.SCENES_LCM, "cpu").vocabulary.words)


def test_a_students_tokenizer_lists_what_its_teachers_does(tmp_path):
    """As any pipeline writes it, and as a stranger's file is staged."""
    teacher = assets.scenes_teacher() / "tokenizer"
    CLIPTokenizer.from_pretrained(teacher).save_pretrained(tmp_path / "written")
    stage_tokenizer(tmp_path / "written", tmp_path / "staged")
    found = [
        parse_vocabulary(json.loads((folder / "tokenizer_config.json").read_text()))
        for folder in (teacher, tmp_path / "written", tmp_path / "staged")
    ]
    assert found[0] is not None
    assert found[0] == found[1] == found[2]


def test_clips_tokenizer_spells_any_word_and_has_nothing_said(tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    for name in (WORDS, EXAMPLES):
        del tokenizer.init_kwargs[name]
    folder = save_miniature("sd15", tokenizer, tmp_path / "sd15")
    assert find_vocabulary(load_latent_model(folder, CPU).conditioner) is None


def test_of_two_encoders_both_must_list_their_words(tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer")
    folder = save_miniature("sdxl", tokenizer, tmp_path / "sdxl")
    conditioner = load_latent_model(folder, CPU).conditioner
    assert find_vocabulary(conditioner).find_unknown(["a cat"]) == ["cat"]
    del conditioner.second.tokenizer.init_kwargs[WORDS]
    assert find_vocabulary(conditioner) is None


def test_a_word_that_was_added_is_known():
    conditioner = load_latent_model(assets.SCENES_LCM, CPU).conditioner
    conditioner.add_word("<my cat>", {"text_encoder": torch.zeros(2, scenes_model.TEXT_WIDTH)})
    vocabulary = find_vocabulary(conditioner)
    assert vocabulary.find_unknown(["a red <My Cat> on white", "my cat"]) == ["my", "cat"]


def test_the_gallerys_tokenizer_lists_hundreds_which_a_message_does_not():
    captions = [Gallery(seed=1).prompt(i)[0] for i in range(3000)]
    vocabulary = parse_vocabulary(scenes_model.build_tokenizer(captions).init_kwargs)
    assert vocabulary.find_unknown(Gallery(seed=5).prompt(i)[0] for i in range(300)) == []
    said = vocabulary.explain(["an elephantt and a sofa in a forest"], "my model")
    assert 'the words "elephantt" (did you mean "elephant"?), "forest"; it knows 3' in said
    assert "which `fewstep inspect 'my model'` lists; for example " in said
    assert len(said) < 300


def test_words_are_told_as_the_tokenizer_splits_them():
    vocabulary = Vocabulary(("a", "cat", "left", "of", "t", "shirt"))
    assert vocabulary.find_unknown(["A cat-left;of: a T-Shirt!", "🙂 ~"]) == []
    assert vocabulary.find_unknown(["2 cats", "a cat's 1.5", "ÉTÉ été", "2 cats"]) == [
        "2",
        "cats",
        "cat's",
        "1.5",
        "été",
    ]
    assert vocabulary.find_nearest("shrit") == "shirt"
    assert vocabulary.find_nearest("zebra") is None


def test_of_many_unknown_words_three_are_named():
    said = Vocabulary(("cat",)).explain(["b c d e f g h"], "cats")
    assert said == 'this model\'s text encoder never learnt the words "b", "c", "d" and 4 more; it knows: cat'


def test_the_note_on_a_long_prompt_of_unknown_words_stays_short(bundled):
    said = bundled.vocabulary.explain(
        ["an astronaut riding a horse on mars, photorealistic, 8k, highly detailed"], "scenes-lcm"
    )
    assert 'the words "astronaut", "riding" (did you mean "ring"?), "horse" and 5 more; it knows 38 others' in said
    assert said.count("for example") == 1
    assert len(said) < 260


@pytest.mark.parametrize(
    "words",
    [None, [], "cat", ["cat", 1], ["cat\x1b[2J"], ["Cat"], ["two words"], ["a" * 300], ["a"] * 30_000, {"cat": 1}],
)
def test_a_list_that_is_none_says_nothing(words):
    assert parse_vocabulary({WORDS: words}) is None


def test_examples_that_a_terminal_would_obey_are_left_out():
    assert parse_vocabulary({WORDS: ["cat"], EXAMPLES: ["a cat", "\x1b[2J"]}) == Vocabulary(("cat",))


def test_what_is_asked_for_in_the_help_is_known(bundled):
    with pytest.raises(UserError, match="nothing to paint"):
        generate(Generate())
    assert list_warnings(bundled, "a small red star above a blue ring on a white background") == []
