"""Where and in which precision a model can learn."""
import pytest
import torch

from pyterrier_tasb.encoding.precision import check_trains


@pytest.mark.parametrize('device', ['cpu', 'cuda', 'cuda:0'])
def test_the_first_gpu_and_a_cpu_train(device, monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    check_trains('auto', torch.device(device))


def test_another_gpu_is_refused_where_the_trainer_would_leave_it(monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    with pytest.raises(ValueError, match='CUDA_VISIBLE_DEVICES=1'):
        check_trains('auto', torch.device('cuda:1'))
    monkeypatch.setenv('WORLD_SIZE', '2')   # one for each process
    monkeypatch.setenv('LOCAL_RANK', '1')
    check_trains('auto', torch.device('cuda:1'))
    with pytest.raises(ValueError, match='process 1 of this machine trains on cuda:1, and the model is on cuda:0'):
        check_trains('auto', torch.device('cuda:0'))
