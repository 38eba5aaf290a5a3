"""Name the recipe keys of earlier versions of the server: old name to today's."""

RENAMED_KEYS: dict[str, str] = {
    "roles": "base_sharing",
    "sampler_replicas": "fdm_server.num_replicas",
    "verifier_replicas": "idm_server.num_replicas",
    "sampler_max_replicas": "fdm_server.autoscaling_config.max_replicas",
    "verifier_max_replicas": "idm_server.autoscaling_config.max_replicas",
    "ingress_replicas": "ingress.num_replicas",
    **{
        key: f"fdm_server.{name} and idm_server.{name}"
        for key, name in {
            "target_ongoing_requests": "autoscaling_config.target_ongoing_requests",
            "upscale_delay_s": "autoscaling_config.upscale_delay_s",
            "downscale_delay_s": "autoscaling_config.downscale_delay_s",
            "cpus_per_replica": "ray_actor_options.num_cpus",
            "gpus_per_replica": "ray_actor_options.num_gpus",
            "max_ongoing_requests": "max_ongoing_requests",
            "max_queued_requests": "max_queued_requests",
            "health_check_timeout_s": "health_check_timeout_s",
            "shutdown_timeout_s": "graceful_shutdown_timeout_s",
        }.items()
    },
    "best_of": "num_candidates",
    "margin": "min_gain_nats",
    "max_beam": "max_beams",
    "guidance": "guidance_scale",
    "guidance_image": "image_guidance_scale",
    "block": "num_draft_tokens",
}
