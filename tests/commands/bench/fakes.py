"""Words and names that several tests of `codetr bench` use."""

INFER_STAGES = ["data", "backbone", "neck", "encoder", "decoder", "heads and query selection", "post-processing"]
SMALL_RUN = ("--size", "64x96", "--iterations", 2, "--warmup", 0, "--device", "cpu")
