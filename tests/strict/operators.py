"""What CUDA's operators do that a CPU's do not: which ones wait, add in no fixed order, launch how many kernels.

The lists are written by hand from PyTorch's sources; an operator that is missing counts as one kernel that never waits.
"""

from __future__ import annotations

from typing import Any

import torch

# These ask the device for a number or for the size of their result: the host waits.
SYNCING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::histc",
    "aten::repeat_interleave", "torchvision::nms", "aten::linalg_solve_ex", "aten::multinomial",
}  # fmt: skip
# CUDA kernels without a fixed order, or that raise or warn under torch.use_deterministic_algorithms.
UNORDERED = {
    "torchvision::_roi_align_backward", "aten::grid_sampler_2d_backward", "aten::upsample_bicubic2d_backward",
    "aten::upsample_bilinear2d_backward", "aten::upsample_linear1d_backward", "aten::adaptive_avg_pool2d_backward",
    "aten::_adaptive_avg_pool2d_backward", "aten::adaptive_max_pool2d_backward", "aten::nll_loss2d_forward",
    "aten::reflection_pad2d_backward", "aten::replication_pad2d_backward", "aten::cumsum", "aten::kthvalue",
    "aten::median", "aten::histc", "aten::put_", "aten::_ctc_loss_backward", "aten::max_pool3d_with_indices_backward",
    "aten::scatter_reduce", "aten::scatter_reduce_", "aten::embedding_dense_backward", "aten::resize_",
}  # fmt: skip
NO_KERNEL = {
    "aten::empty", "aten::empty_strided", "aten::empty_like", "aten::new_empty", "aten::new_empty_strided",
    "aten::detach", "aten::alias", "aten::_reshape_alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::set_",
    "aten::resize_", "aten::is_same_size", "aten::_fused_sdp_choice", "aten::is_pinned", "aten::record_stream",
    "aten::_has_compatible_shallow_copy_type", "aten::sym_size", "aten::is_coalesced", "aten::_local_scalar_dense",
}  # fmt: skip
# Kernels of operators that launch more than one.
KERNELS = {
    "aten::sort": 4, "aten::topk": 3, "aten::nonzero": 4, "aten::index_put": 2, "aten::select_backward": 2,
    "aten::slice_backward": 2, "aten::native_layer_norm_backward": 2, "aten::native_group_norm": 2,
    "aten::native_group_norm_backward": 3, "aten::convolution_backward": 2, "aten::randperm": 4,
    "torchvision::nms": 2, "aten::masked_select": 4, "aten::embedding_dense_backward": 4,
    "aten::index_add": 2, "codetr::deform_attn_backward": 3,
}  # fmt: skip
# Operators that take host tensors without dimensions as numbers, although they have no tag "pointwise".
TAKE_NUMBERS = {
    "aten::where", "aten::masked_fill", "aten::masked_fill_", "aten::fill_", "aten::fill", "aten::copy_",
    "aten::clamp", "aten::clamp_", "aten::full", "aten::lerp", "aten::addcmul", "aten::addcdiv",
    "aten::_foreach_mul", "aten::_foreach_mul_", "aten::_fused_adamw_", "aten::_fused_adam_",
}  # fmt: skip
# Composite operators that are one operator on CUDA.
WHOLE = {"aten::scaled_dot_product_attention", "aten::upsample_nearest2d"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


def name_of(operator: Any) -> str:
    """Namespace and name without the overload."""
    return operator._schema.name


def takes_numbers(operator: Any) -> bool:
    """Whether a host tensor without dimensions is a number for this operator."""
    return torch.Tag.pointwise in operator.tags or name_of(operator) in TAKE_NUMBERS
