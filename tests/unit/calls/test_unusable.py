"""What is said of responses that an endpoint failed on."""

from fgaif_ray.calls.unusable import UnusableAnswer, describe_failures


def test_only_failures_of_the_endpoint_leave_a_row_to_be_done() -> None:
    reasons = ("server", "timeout", "rejected", "malformed", "length", "refusal")
    of_endpoint = [reason for reason in reasons if UnusableAnswer(reason, "x").is_of_endpoint]
    assert of_endpoint == ["server", "timeout"]


def test_failures_are_counted_by_reason_and_say_how_to_go_on() -> None:
    failures = ["server: status 500.", "timeout: no answer", "server: status 500."]
    said = describe_failures(failures, 10, "label.extractor")
    assert said.startswith(
        "The endpoint failed on 3 of 10 responses (server 2, timeout 1; the first: server: status 500)"
    )
    assert "run the same command again" in said
    assert "--set label.extractor.reject_failed=true" in said
