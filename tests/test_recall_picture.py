"""The picture of the tasks: every one is there, and says what its tokens say."""

from matplotlib.figure import Figure

from ssmlib.recall import TASKS
from ssmlib.recall.picture import ROLES, _scenes, describe, draw_tasks, examples


def test_every_task_of_tokens_has_a_row():
    assert {scene.task for scene in _scenes()} == set(TASKS) - {"regression"}
    rows = examples()
    assert len({title for title, _, _ in rows}) == len(rows)
    for title, said, asked in rows:
        assert len(said) == len(asked)
        assert any(asked), title
        assert all(role in ROLES for word in (*said, *asked) if word for role in word[1:])
        assert all(len(word[0]) == 1 for word in said)


def test_names_are_one_to_one():
    """Different tokens of a scene are drawn differently, unless both are filler."""
    for scene in _scenes():
        vocab = TASKS[scene.task].vocab(**scene.setting)
        names = [scene.name(token) for token in range(vocab)]
        told = [name for name in names if name[1] != "filler"]
        assert len(set(told)) == len(told), scene.title


def test_one_needle_says_pineapple():
    assert "P  I  N  E  A  P  P  L  E" in describe()
    assert describe() == describe()
    assert describe(1) != describe()


def test_it_is_drawn(tmp_path):
    figure = draw_tasks()
    assert isinstance(figure, Figure)
    assert len(figure.axes) == len(examples()) + 1
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert words.count("P") >= 3
    figure.savefig(tmp_path / "tasks.png")
    assert (tmp_path / "tasks.png").stat().st_size > 20_000
