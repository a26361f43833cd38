import json

import pytest
import torch

from jobs.bench import kernels
from model.network.onednn import is_prepackable


@pytest.mark.slow
def test_the_last_line_is_a_json_object_with_every_choice(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "NUM_MATRICES", 2)
    monkeypatch.setattr(kernels, "keep_freed_memory", lambda: None)
    code = kernels.main(["--tries", "1", "--threads", str(torch.get_num_threads())])
    if not is_prepackable(torch.zeros(1, 1, dtype=torch.bfloat16)):
        assert code == 1
        return
    assert code == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["products"].keys() == {"1", "3", "8", "32", "128", "512"}
    assert result["context"]["attend 256"] > 0
    assert result["gather"].keys() == {"index", "index_select"}
    assert result["values"].keys() == {"stored", "made contiguous"}
    assert "longer" in result["first_use"]
