"""A hub that is none, or means harm: refused in words that say whose doing it is."""

from __future__ import annotations

import json

import pytest
from hub_server import Fault, HubServer

from tune.errors import HubError
from tune.hub.listing import look_up
from tune.utils.hub_access import connect


def test_a_redirect_to_a_file_is_not_the_users_doing(hub: HubServer) -> None:
    hub.faults.append(
        Fault("api/models", "status", 99, status=302, headers={"Location": "file:///etc/passwd"})
    )
    with pytest.raises(HubError) as caught:
        look_up(connect(), "some/model")
    assert "it sends on to what is no address of the web" in str(caught.value)
    assert "HF_ENDPOINT is no" not in str(caught.value)


def test_an_answer_of_a_hundred_thousand_brackets(hub: HubServer) -> None:
    hub.faults.append(Fault("api/models", "status", 99, status=200, body="[" * 100_000))
    with pytest.raises(HubError, match="did not answer as the hub does"):
        look_up(connect(), "some/model")


def test_a_list_of_files_that_does_not_end(hub: HubServer) -> None:
    hub.add("some/model", {"config.json": b"{}"})
    page = [{"type": "file", "path": f"a{n}", "size": 1, "oid": f"{n:040x}"} for n in range(10_000)]
    again = {"Link": f'<{hub.url}/api/models/some/model/tree/main?cursor=x>; rel="next"'}
    hub.faults.append(Fault("/tree/", "status", 99, status=200, headers=again, body=json.dumps(page)))
    with pytest.raises(HubError, match="more than 100,000 files"):
        look_up(connect(), "some/model")
