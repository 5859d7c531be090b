"""Kernels in Triton: sums over samples of |gradient|^power of a weight, of which no sample's gradient is ever written.

A program owns one tile of a weight. It goes from sample to sample; of each it sums, position after position, the
products of a tile of the one factor with a tile of the other, in registers, and adds the magnitude of that to the sum
over its samples, in registers, too. What it writes is the weight's tile, once. The order of all sums is fixed by the
shapes: the same numbers give the same result, on whatever GPU.

Here alone is Triton imported; `fused` imports this file where it is used. Kernels keep off functions of Triton that are
written in Triton (`tl.zeros`, `tl.cdiv`): its interpreter, in which tests run them on a CPU, takes those only where it
was chosen before Triton was imported.

Source: the shape of the loop is that of clipped sums in FlashDP (Wang et al., arXiv 2507.01154), which needs a sample's
norm in place of its magnitudes.
"""

import triton
import triton.language as tl

# A kernel is compiled once for each pattern of what is 1 or divisible by 16 among the other sizes and strides.
_ANY = ["num_samples", "samples_of_one", "out_part"]


@triton.jit(do_not_specialize=_ANY)
def sum_products(
    left,
    right,
    out,
    num_samples,
    samples_of_one,
    positions,
    rows,
    columns,
    left_sample,
    left_position,
    left_row,
    right_sample,
    right_position,
    right_column,
    out_part,
    out_row,
    out_column,
    POWER: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_ADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """out[part] = or += sum_k |left_k^T right_k|^POWER over the samples of the part.

    Args:
        left: (samples, positions, rows), with strides; `right` (samples, positions, columns).
        out: (parts, rows, columns), with strides.
        samples_of_one: samples of a part.
    """
    row_tiles = (rows + ROWS - 1) // ROWS
    tile = tl.program_id(0)
    part = tl.program_id(1)
    row = tile % row_tiles * ROWS + tl.arange(0, ROWS)
    column = tile // row_tiles * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    first = part * samples_of_one
    for sample in range(first, tl.minimum(first + samples_of_one, num_samples)):
        lefts = left + tl.cast(sample, tl.int64) * left_sample + row[:, None] * left_row
        rights = right + tl.cast(sample, tl.int64) * right_sample + column[None, :] * right_column
        gradient = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
        for start in range(0, positions, POSITIONS):
            position = start + tl.arange(0, POSITIONS)
            a = tl.load(
                lefts + position[None, :] * left_position,
                mask=(row[:, None] < rows) & (position[None, :] < positions),
                other=0.0,
            )
            b = tl.load(
                rights + position[:, None] * right_position,
                mask=(position[:, None] < positions) & (column[None, :] < columns),
                other=0.0,
            )
            gradient = tl.dot(a, b, gradient, input_precision=PRECISION)
        if POWER == 1:
            total += tl.abs(gradient)
        else:
            total += gradient * gradient
    where = out + part * out_part + row[:, None] * out_row + column[None, :] * out_column
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    if IS_ADDED:
        total += tl.load(where, mask=inside, other=0.0)
    tl.store(where, total, mask=inside)


_GEOMETRY = [
    *("width", "image_height", "image_width", "kernel_height", "kernel_width", "stride_y", "stride_x"),
    *("padding_y", "padding_x", "dilation_y", "dilation_x", "out_row", "out_channel", "out_y", "out_x"),
]


@triton.jit(do_not_specialize=[*_ANY, *_GEOMETRY])
def sum_windows(
    grad,
    images,
    out,
    num_samples,
    samples_of_one,
    repeats,
    positions,
    rows,
    channels,
    width,
    image_height,
    image_width,
    kernel_height,
    kernel_width,
    stride_y,
    stride_x,
    padding_y,
    padding_x,
    dilation_y,
    dilation_x,
    grad_sample,
    grad_repeat,
    grad_row,
    grad_position,
    image_sample,
    image_repeat,
    image_channel,
    image_y,
    image_x,
    out_part,
    out_row,
    out_channel,
    out_y,
    out_x,
    POWER: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_ADDED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """The same for a convolution in two dimensions: the columns are what lies under its kernel, found in the images.

    Args:
        grad: (samples, repeats, rows of all groups, positions), with strides; a position is (y, x), `width` to a y.
        images: (samples, repeats, channels of all groups, image_height, image_width), with strides.
        out: (parts, rows of all groups, channels, kernel_height, kernel_width), with strides.
        rows, channels: of one group.
        CHANNELS_LAST: 1 where channels lie side by side in memory, 0 where pixels do. What lies so is along the last
            dimension of a tile of windows, and is read together; so columns are along dimension CHANNELS_LAST.
    """
    row_tiles = (rows + ROWS - 1) // ROWS
    tile = tl.program_id(0)
    part = tl.program_id(1)
    group = tl.program_id(2)
    row_in_group = tile % row_tiles * ROWS + tl.arange(0, ROWS)
    row = group * rows + row_in_group
    column = tile // row_tiles * COLUMNS + tl.arange(0, COLUMNS)
    columns = channels * kernel_height * kernel_width
    if CHANNELS_LAST:
        channel = column % channels
        place = column // channels
    else:
        channel = column // (kernel_height * kernel_width)
        place = column % (kernel_height * kernel_width)
    kernel_y = place // kernel_width
    kernel_x = place % kernel_width
    channels_at = tl.expand_dims((group * channels + channel) * image_channel, 1 - CHANNELS_LAST)
    shift_y = tl.expand_dims(kernel_y * dilation_y - padding_y, 1 - CHANNELS_LAST)
    shift_x = tl.expand_dims(kernel_x * dilation_x - padding_x, 1 - CHANNELS_LAST)
    is_column = tl.expand_dims(column < columns, 1 - CHANNELS_LAST)
    total = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
    first = part * samples_of_one
    for sample in range(first, tl.minimum(first + samples_of_one, num_samples)):
        gradient = tl.full([ROWS, COLUMNS], 0.0, tl.float32)
        for repeat in range(repeats):
            grads = grad + tl.cast(sample, tl.int64) * grad_sample + repeat * grad_repeat + row[:, None] * grad_row
            pixels = images + tl.cast(sample, tl.int64) * image_sample + repeat * image_repeat + channels_at
            for start in range(0, positions, POSITIONS):
                position = start + tl.arange(0, POSITIONS)
                a = tl.load(
                    grads + position[None, :] * grad_position,
                    mask=(row_in_group[:, None] < rows) & (position[None, :] < positions),
                    other=0.0,
                )
                y = tl.expand_dims(position // width * stride_y, CHANNELS_LAST) + shift_y
                x = tl.expand_dims(position % width * stride_x, CHANNELS_LAST) + shift_x
                inside = (y >= 0) & (y < image_height) & (x >= 0) & (x < image_width)
                inside &= is_column & tl.expand_dims(position < positions, CHANNELS_LAST)
                b = tl.load(pixels + y * image_y + x * image_x, mask=inside, other=0.0)
                if not CHANNELS_LAST:
                    b = tl.trans(b)
                gradient = tl.dot(a, b, gradient, input_precision=PRECISION)
        if POWER == 1:
            total += tl.abs(gradient)
        else:
            total += gradient * gradient
    weights = channel * out_channel + kernel_y * out_y + kernel_x * out_x
    where = out + part * out_part + row[:, None] * out_row + weights[None, :]
    is_weight = (row_in_group[:, None] < rows) & (column[None, :] < columns)
    if IS_ADDED:
        total += tl.load(where, mask=is_weight, other=0.0)
    tl.store(where, total, mask=is_weight)
