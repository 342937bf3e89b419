"""The simulation of a cluster: what follows from its numbers by hand, and that nothing is lost or made in vain."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def cluster(benchmark_script):
    return benchmark_script("cluster")


def quiet(cluster, **options):
    plain = {"stragglers": 0.0, "lifetime": None, "spread": 0.0, "commit": 0.0}
    return cluster.Cluster(**{"workers": 10, "shards": 100, "shard": 60.0, **plain, **options})


def test_without_trouble_it_takes_the_ideal_time(cluster):
    found = cluster.simulate(quiet(cluster))
    assert found.seconds == pytest.approx(600) == cluster.ideal(quiet(cluster))
    assert (found.made_twice, found.deaths, found.idle) == (0, 0, 0)
    slow = quiet(cluster, stragglers=1.0, slow=3.0)
    assert cluster.simulate(slow).seconds == pytest.approx(1800) == cluster.ideal(slow)


def test_a_node_that_goes_for_good_costs_what_it_had_in_hand_and_its_share_of_the_rest(cluster):
    found = cluster.simulate(quiet(cluster, lost=(90.0, 5)))
    assert found.deaths == 5 and found.made_twice == pytest.approx(5 * 30)
    # 10 shards by 60 s, then five workers have 90 left: five are done at 120 s and every minute
    assert found.seconds == pytest.approx(60 + 18 * 60)


def test_deaths_cost_half_a_shard_each_and_the_time_until_a_worker_is_back(cluster):
    asked = quiet(cluster, shards=4000, lifetime=3600.0, back=120.0)
    found = cluster.simulate(asked)
    assert found.deaths == pytest.approx(4000 * 60 / 3600, rel=0.3)
    assert found.made_twice == pytest.approx(found.deaths * 30, rel=0.3)
    lost = (found.made_twice + found.deaths * 120) / 10
    assert found.seconds == pytest.approx(cluster.ideal(asked) + lost, rel=0.02)


def test_who_commits_bounds_the_rate(cluster):
    found = cluster.simulate(quiet(cluster, commit=30.0, commits=2))
    assert found.seconds == pytest.approx(60 + 100 * 30 / 2) and found.queue > 50


def test_it_prints_a_row_a_scenario(cluster, capsys):
    cluster.main(["--workers", "20", "--shards", "200"])
    out = capsys.readouterr().out
    assert out.count("\n| ") == 2 + len(cluster.scenarios(quiet(cluster))) and "lost for good" in out
