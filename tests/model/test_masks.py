"""The masks against tables drawn by hand and against what the paper says of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pargo_ds.model.masks import (
    CASCADES,
    block_order,
    cascade_mask,
    cascade_window,
    partial_global_mask,
    partial_groups,
    patches_of_partial,
    window_width,
)

# A busy machine may take its time: Hypothesis would count that as a failure after 200 ms.
untimed = settings(deadline=None)


def seen(mask: torch.Tensor) -> list[set[int]]:
    """Rows as sets of tokens counted from 1, the way figure 2 writes them."""
    return [{int(j) + 1 for j in row.nonzero()} for row in mask]


# Figure 2 of the paper: "one-to-one", "one-to-two", "one-to-three", "one-to-all" for n_p = 4, d =
# 4.
FIGURE_2 = {
    1: [{1}, {2}, {3}, {4}],
    2: [{1, 2}, {1, 2}, {2, 3}, {3, 4}],
    3: [{1, 2, 3}, {1, 2, 3}, {2, 3, 4}, {2, 3, 4}],
    4: [{1, 2, 3, 4}] * 4,
}


@pytest.mark.parametrize("layer", FIGURE_2)
def test_shifted_cascade_is_the_table_of_figure_2(layer):
    assert seen(cascade_mask(4, layer, 4)) == FIGURE_2[layer]


def test_other_readings_of_the_cascade_by_hand():
    assert seen(cascade_mask(4, 2, 4, "centered")) == [{1}, {1, 2}, {2, 3}, {3, 4}]
    assert seen(cascade_mask(4, 4, 4, "centered")) == [{1, 2}, {1, 2, 3}, {1, 2, 3, 4}, {2, 3, 4}]
    assert seen(cascade_mask(4, 1, 4, "each_side")) == [{1, 2}, {1, 2, 3}, {2, 3, 4}, {3, 4}]
    assert seen(cascade_mask(4, 3, 4, "none")) == [{1}, {2}, {3}, {4}]
    assert seen(cascade_mask(4, 1, 4, "release")) == [{1, 2, 3, 4}] * 4


def test_partial_global_mask_of_the_paper_by_hand():
    # 2 partial and 1 global token over 6 patches: n_s = 3 patches each.
    assert partial_global_mask(2, 1, 6).int().tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


def test_uneven_groups_differ_by_at_most_one_by_hand():
    assert partial_groups(3, 8) == [0, 2, 5, 8]


def test_paper_size_groups_are_two_patches():
    assert partial_groups(288, 576) == list(range(0, 577, 2))


@st.composite
def sizes(draw):
    num_patches = draw(st.integers(1, 200))
    return draw(st.integers(1, num_patches)), draw(st.integers(0, 20)), num_patches


@untimed
@given(sizes())
def test_each_patch_is_seen_by_one_partial_token_and_all_globals(size):
    num_partial, num_global, num_patches = size
    mask = partial_global_mask(*size)
    assert mask.shape == (num_partial + num_global, num_patches)
    assert (mask[:num_partial].sum(0) == 1).all()
    assert mask[num_partial:].all()


@untimed
@given(sizes())
def test_groups_are_contiguous_in_raster_order_and_differ_by_at_most_one(size):
    num_partial, _, num_patches = size
    bounds = partial_groups(num_partial, num_patches)
    lengths = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    assert bounds[0] == 0
    assert bounds[-1] == num_patches
    assert len(lengths) == num_partial
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


def test_block_groups_by_hand():
    assert patches_of_partial(4, 16, "block") == [
        [0, 4, 1, 5],
        [2, 6, 3, 7],
        [8, 12, 9, 13],
        [10, 14, 11, 15],
    ]
    # 2 tokens on 2 x 4 patches: two squares, side by side.
    assert patches_of_partial(2, 8, "block", (2, 4)) == [[0, 4, 1, 5], [2, 6, 3, 7]]
    # 8 on 4 x 4: two equally long shapes of 2 patches; the taller one, so that blocks differ from
    # the raster.
    assert patches_of_partial(8, 16, "block")[:3] == [[0, 4], [1, 5], [2, 6]]


def connected(patches: list[int], columns: int) -> bool:
    """Whether neighbours (diagonals included) join all patches of a group."""
    left, reached = set(patches), {patches[0]}
    while True:
        near = {
            p
            for p in left
            for r in reached
            if max(abs(p // columns - r // columns), abs(p % columns - r % columns)) <= 1
        }
        if near <= reached:
            return reached == left
        reached |= near


@untimed
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_patch_belongs_to_one_connected_block_and_sizes_differ_by_at_most_one(
    rows, columns, data
):
    num_partial = data.draw(st.integers(1, rows * columns))
    groups = patches_of_partial(num_partial, rows * columns, "block", (rows, columns))
    assert sorted(patch for group in groups for patch in group) == list(range(rows * columns))
    sizes = {len(group) for group in groups}
    assert max(sizes) - min(sizes) <= 1
    assert all(connected(group, columns) for group in groups)
    assert block_order(num_partial, rows, columns) == [patch for group in groups for patch in group]


@untimed
@given(
    st.sampled_from(
        [(a, b, c, d) for a in (1, 2, 3) for b in (1, 2, 4) for c in (2, 3) for d in (2, 3)]
    )
)
def test_blocks_are_rectangles_where_the_counts_tile(size):
    down, across, height, width = size
    rows, columns = down * height, across * width
    for group in patches_of_partial(down * across, rows * columns, "block", (rows, columns)):
        tall = {patch // columns for patch in group}
        wide = {patch % columns for patch in group}
        assert len(tall) * len(wide) == len(group)


@st.composite
def cascades(draw):
    depth = draw(st.integers(1, 12))
    return draw(st.integers(1, 100)), draw(st.integers(1, depth)), depth


@untimed
@given(cascades())
def test_shifted_window_keeps_its_width_and_holds_its_token(size):
    num_partial, layer, depth = size
    width = window_width(*size)
    for i, (start, stop) in enumerate(cascade_window(*size)):
        assert stop - start == width
        assert 0 <= start <= i < stop <= num_partial


@untimed
@given(cascades())
def test_shifted_cascade_only_widens_and_ends_full(size):
    num_partial, layer, depth = size
    here = cascade_mask(*size)
    if layer < depth:
        assert not (here & ~cascade_mask(num_partial, layer + 1, depth)).any()
    assert cascade_mask(num_partial, depth, depth).all()


@untimed
@given(cascades(), st.sampled_from(CASCADES))
def test_a_token_always_sees_itself_and_the_mask_equals_the_window(size, cascade):
    mask = cascade_mask(*size, cascade)
    assert mask.diagonal().all()
    windows = cascade_window(*size, cascade)
    assert [(w.start, w.stop) for w in windows] == [
        (int(row.nonzero().min()), int(row.nonzero().max()) + 1) for row in mask
    ]
    assert mask.sum(1).tolist() == [w.stop - w.start for w in windows]


def test_more_partial_tokens_than_patches_is_an_error():
    with pytest.raises(ValueError, match="65 partial tokens but only 64 patches"):
        partial_global_mask(65, 4, 64)


@pytest.mark.parametrize("layer", [0, 5])
def test_layers_count_from_one(layer):
    with pytest.raises(ValueError, match="layers count from 1"):
        cascade_mask(4, layer, 4)


def test_unknown_cascade_names_the_known_ones():
    with pytest.raises(ValueError, match="shifted, centered, each_side, none, release"):
        cascade_mask(4, 1, 4, "wide")
