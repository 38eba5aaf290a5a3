"""Ray Serve's own options in a recipe: passed through as they are, or refused before anything starts."""

import pytest
from ray.serve._private.build_app import build_app as build_for_ray

from serve_apps.__main__ import main as serve_main
from serve_apps.deployment_options import merge_options
from serve_apps.recipe import ServeRecipe
from serve_apps.world_model import build
from wm.errors import InputError

SCALING = {"min_replicas": 1, "max_replicas": 6, "target_ongoing_requests": 4.0, "upscale_delay_s": 15.0}


def deployments_of(tiny_base, **tables):
    application = build(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), **tables))
    return {deployment.name: deployment for deployment in build_for_ray(application, name="wm").deployments}


def test_options_reach_ray_as_they_are(tiny_base):
    fdm = {"autoscaling_config": SCALING, "ray_actor_options": {"num_cpus": 0.5}, "graceful_shutdown_timeout_s": 7}
    found = deployments_of(tiny_base, fdm_server=fdm, idm_server={"num_replicas": 3}, ingress={"num_replicas": 2})
    scaling = found["FDMServer"]._deployment_config.autoscaling_config
    assert {name: getattr(scaling, name) for name in SCALING} == SCALING
    assert found["FDMServer"].ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0}
    assert found["FDMServer"]._deployment_config.graceful_shutdown_timeout_s == 7
    assert found["IDMServer"].num_replicas == 3
    assert found["IDMServer"].ray_actor_options == {"num_cpus": 1, "num_gpus": 0}
    assert (found["Ingress"].num_replicas, found["Ingress"].ray_actor_options["num_cpus"]) == (2, 0)
    assert found["Ingress"].max_ongoing_requests == 256 + 256


def test_both_models_in_one_process_have_the_fdms_options(tiny_base):
    found = deployments_of(tiny_base, base_sharing="merged", fdm_server={"max_ongoing_requests": 5})
    assert set(found) == {"WorldModelServer", "Ingress"}
    assert found["WorldModelServer"].max_ongoing_requests == 5
    assert found["WorldModelServer"].max_queued_requests == 64


def test_actor_options_merge_key_by_key():
    defaults = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 1, "num_gpus": 0}}
    merged = merge_options(defaults, {"num_replicas": 2, "ray_actor_options": {"num_gpus": 0.5}})
    assert merged == {"num_replicas": 2, "ray_actor_options": {"num_cpus": 1, "num_gpus": 0.5}}
    assert defaults["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}


@pytest.mark.parametrize("num_cpus", [0.25, 1, 4])
def test_threads_are_the_cores_of_a_replica(num_cpus):
    recipe = ServeRecipe(fdm="a", idm="b", fdm_server={"ray_actor_options": {"num_cpus": num_cpus}})
    assert (recipe.num_threads("fdm"), recipe.num_threads("idm")) == (max(1, int(num_cpus)), 1)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("fdm_server.num_replica=2", "unknown key num_replica; did you mean num_replicas?"),
        ("fdm_server.autoscaling_config.max_replica=2", "did you mean autoscaling_config.max_replicas?"),
        ("idm_server.ray_actor_options.num_gpu=1", "did you mean ray_actor_options.num_gpus?"),
        ("ingress.colour=1", "unknown key colour; Ray's are num_replicas, ray_actor_options, "),
        ("fdm_server.name=x", "unknown key name; "),
        ("fdm_server.num_replicas=-1", "Ray Serve refuses these options: "),
        ("fdm_server.autoscaling_config.min_replicas=3", "Ray Serve refuses these options: "),
        ("fdm_server.ray_actor_options.num_cpus=-1", "Ray Serve refuses these options: "),
        ("fdm_server={num_replicas = 2, autoscaling_config = {max_replicas = 3}}", "Ray Serve refuses these options: "),
        ("fdm_server=3", "fdm_server = 3"),
        ("sampler_replicas=2", "unknown key 'sampler_replicas': it is called fdm_server.num_replicas now"),
        (
            "cpus_per_replica=2",
            "it is called fdm_server.ray_actor_options.num_cpus and idm_server.ray_actor_options.num_cpus now",
        ),
        ("roles=shared", "unknown key 'roles': it is called base_sharing now"),
        ("roles=apart", "it is called base_sharing now; roles = 'apart' is base_sharing = 'separate'"),
        ("best_of=8", "unknown key 'best_of': it is called num_candidates now"),
    ],
)
def test_wrong_options_are_refused_before_work_starts(tiny_base, capsys, setting, says):
    assert serve_main([f"fdm={tiny_base}", f"idm={tiny_base}", setting, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1, error


def test_serve_run_passes_a_table_as_text():
    values = {"fdm": "a", "idm": "b", "fdm_server": "{num_replicas = 2, ray_actor_options = {num_cpus = 0.5}}"}
    recipe = ServeRecipe.model_validate(values)
    assert recipe.fdm_server == {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    with pytest.raises(ValueError, match="expected a table such as"):
        ServeRecipe.model_validate(values | {"fdm_server": "two"})


def test_an_old_key_in_yaml_says_the_new_one():
    with pytest.raises(ValueError, match="unknown key 'block': it is called num_draft_tokens now"):
        ServeRecipe.model_validate({"fdm": "a", "idm": "b", "block": 4})
    with pytest.raises(InputError, match="'guidance': it is called guidance_scale now"):
        ServeRecipe.parse({"fdm": "a", "idm": "b", "guidance": 2}, "recipe.toml")


def test_all_old_keys_of_a_file_are_named_at_once():
    values = {"fdm": "a", "idm": "b", "roles": "shared", "block": 4, "guidance": 2}
    with pytest.raises(InputError) as caught:
        ServeRecipe.parse(values, "recipe.toml")
    assert str(caught.value) == (
        "recipe.toml: unknown key 'roles': it is called base_sharing now; unknown key 'guidance': it is called "
        "guidance_scale now; unknown key 'block': it is called num_draft_tokens now"
    )
