"""Names of files."""

from analysis.files import file_names


def test_names_of_files_differ_where_labels_do() -> None:
    labels = ["AdamW, lr = 0.1", "AdamW (lr 0.1)", "adamw lr 0.1", "α₀ / x"]
    assert list(file_names(labels).values()) == ["AdamW_lr_0.1", "AdamW_lr_0.1_2", "adamw_lr_0.1_3", "alpha0_x"]
    assert file_names(["a b", "a, b"], "-") == {"a b": "a-b", "a, b": "a-b-2"}
    assert list(file_names(["Caféteria, γ = 0.9, 学"]).values()) == ["Cafeteria_gamma_0.9"]
    assert list(file_names(["a b", "a-b", "a b 2", "+", "-"]).values()) == [
        *("a_b", "a_b_2", "a_b_2_2", "unnamed", "unnamed_2"),
    ]


def test_names_of_files_are_not_too_long() -> None:
    names = file_names([f"{'α' * 300} {number}" for number in range(2)])
    assert list(names.values()) == ["alpha" * 24, f"{'alpha' * 24}_2"]
