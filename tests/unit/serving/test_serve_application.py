"""`configs/serve-rewards.yaml` as Ray Serve reads it."""

from pathlib import Path

from support.serve_application import application_of

from fgaif_ray.config import load_config


def test_the_application_is_valid_and_listens_where_its_configuration_says(repository: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(application_of(repository))
    (application,) = schema.applications
    config = load_config(repository / application.args["config"], application.args["set"])
    assert config.serve.host == schema.http_options.host
    assert schema.http_options.request_timeout_s > config.serve.request_timeout_s
