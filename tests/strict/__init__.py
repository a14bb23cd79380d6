"""The parts of `tests.strict_device`, an emulated GPU without a GPU."""
