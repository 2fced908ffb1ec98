"""The evaluation job before there is a policy."""

import pytest
from support.evaluation_runs import configure

from fgaif_ray.errors import UserError
from jobs import evaluate


def test_an_evaluation_without_a_policy_names_the_job_to_run(repository, tmp_path):
    with pytest.raises(UserError, match=r"jobs\.align"):
        evaluate.run(configure(repository, tmp_path))
