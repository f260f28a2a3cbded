"""Names of files."""

from analysis.files import file_names


def test_names_of_files_differ_where_labels_do() -> None:
    labels = ["AdamW, lr = 0.1", "AdamW (lr 0.1)", "adamw lr 0.1", "α₀ / x"]
    assert list(file_names(labels).values()) == ["AdamW_lr_0.1", "AdamW_lr_0.1_2", "adamw_lr_0.1_3", "α₀_x"]
    assert file_names(["a b", "a, b"], "-") == {"a b": "a-b", "a, b": "a-b-2"}
