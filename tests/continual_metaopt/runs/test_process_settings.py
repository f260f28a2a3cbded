"""How a process is set up that executes many small steps."""

import torch

from continual_metaopt.runs.process_settings import set_up_process


def test_one_thread_and_no_denormal_numbers() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    torch.set_flush_denormal(False)
    smallest = torch.tensor(torch.finfo(torch.float32).tiny)
    assert smallest / 2 > 0
    try:
        set_up_process()
        assert torch.get_num_threads() == 1
        assert smallest / 2 == 0
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
