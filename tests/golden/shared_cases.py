"""Names of the recorded cases in `golden/cases` of the shared folder that the tests run."""

from __future__ import annotations

QUICK_CASES = (
    "co_dino_r50_eval",
    "co_dino_r50_init",
    "msda_op",
    "preprocess",
    "augment",
    "co_deformable_r50_eval",
    "co_deformable_r50_init",
)

SLOW_CASES = (
    "co_dino_r50_train",
    "co_dino_r50_train_empty",
    "co_dino_r50_train_all_empty",
    "co_dino_r50_9enc_eval",
    "co_deformable_r50_train",
    "co_deformable_r50_train_empty",
    "co_deformable_r50_train_all_empty",
    "co_deformable_swin_t_eval",
    "co_deformable_swin_s_eval",
    "co_deformable_swin_b_eval",
    "co_deformable_swin_l_900q_eval",
    "co_deformable_mask_r50_eval",
    "co_deformable_mask_r50_train",
    "co_dino_swin_l_eval",
    "co_dino_vit_l_eval",
    "co_dino_vit_l_eval_b2",
    "co_dino_vit_l_inst_eval",
    "co_dino_vit_l_inst_train",
    "co_dino_vit_l_lsj_lvis_eval",
    "co_dino_vit_l_inst_lsj_lvis_eval",
)
