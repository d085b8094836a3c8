"""How a job file, the environment and flags become one job, and what is said when they are wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from consumers.errors import ConfigError
from pipeline.jobfile import load

JOB = """\
# line 1
[job]
name = "flights"
state_dir = "state/flights"

[kafka]
"bootstrap.servers" = "localhost:9092"

[features]
topic = "flights.features"
numeric = [
  "distance",
  { name = "dep_hour", nullable = true },
]

[labels]
topic = "flights.labels"
column = "late"

[dead_letters]
topic = "flights.dead"
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def problems(path: Path, *overrides: str, **environment: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environment)
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{path}", "job.toml").splitlines()


def with_line(path: Path, line: str, *, after: str) -> Path:
    path.write_text(JOB.replace(after, f"{after}\n{line}"))
    return path


def test_a_job_file_is_enough(job_file: Path) -> None:
    job = load(job_file, environment={})
    assert job.job.name == "flights"
    assert [column.nullable for column in job.features.numeric] == [False, True]
    assert job.learner.batch_size == 256


def test_a_relative_state_directory_stays_relative_to_the_working_directory(job_file: Path) -> None:
    assert load(job_file, environment={}).job.state_dir == Path("state/flights")


def test_flags_win_over_the_environment_which_wins_over_the_file(job_file: Path) -> None:
    environment = {"EVERTRAIN__JOB__NAME": "from-environment", "EVERTRAIN__LEARNER__BATCH_SIZE": "64"}
    job = load(job_file, ["job.name=from-flag"], environment)
    assert (job.job.name, job.learner.batch_size) == ("from-flag", 64)


@pytest.mark.parametrize(
    ("override", "path", "expected"),
    [
        ("learner.batch_size=512", "learner.batch_size", 512),
        ("on_drift.rewarm=['concept', 'feature']", "on_drift.rewarm", ("concept", "feature")),
        ("monitor.drift=false", "monitor.drift", False),
        ("join.window=48h", "join.window", 48 * 3_600_000),
        ('job.name="7"', "job.name", "7"),
        ("features.start=2013-01-01T00:00:00Z", "features.start", "2013-01-01T00:00:00Z"),
        ("features.key=a=b", "features.key", "a=b"),
    ],
)
def test_a_flag_is_toml_or_else_text(job_file: Path, override: str, path: str, expected: object) -> None:
    value: object = load(job_file, [override], {})
    for name in path.split("."):
        value = getattr(value, name)
    assert value == expected


def test_a_value_cannot_smuggle_in_a_second_key(job_file: Path) -> None:
    job = load(job_file, ["features.key=1\nother = 2"], {})
    assert job.features.key == "1\nother = 2"


def test_kafka_keys_keep_their_dots(job_file: Path) -> None:
    overrides = ["kafka.bootstrap.servers=a:1", 'kafka."fetch.min.bytes"=5']
    job = load(job_file, overrides, {"EVERTRAIN__KAFKA__CLIENT_ID": "me"})
    assert job.kafka == {"bootstrap.servers": "a:1", "fetch.min.bytes": 5, "client.id": "me"}


def test_a_wrong_value_is_reported_with_file_line_and_what_is_allowed(job_file: Path) -> None:
    with_line(job_file, 'format = "jsn"', after='topic = "flights.features"')
    assert problems(job_file) == [
        "job.toml:11: features.format = 'jsn': allowed: 'json', 'avro', 'protobuf', 'packed' or 'arrow'"
    ]


def test_a_typo_is_answered_with_the_closest_key(job_file: Path) -> None:
    with_line(job_file, "sed = 1", after='name = "flights"')
    assert problems(job_file) == ["job.toml:4: unknown key 'job.sed'; did you mean 'job.seed'?"]


def test_a_typo_in_a_tables_name_is_answered_with_the_closest_key(job_file: Path) -> None:
    with_line(job_file, "\n[learnner]\nbatch_size = 8", after='column = "late"')
    expected = "unknown key 'learnner.batch_size'; did you mean 'learner.batch_size'?"
    assert problems(job_file) == [f"job.toml:20: {expected}"]


def test_a_key_like_no_other_is_answered_with_the_keys_of_its_table(job_file: Path) -> None:
    (problem,) = problems(job_file, "snapshot.qqq=1")
    assert (
        problem
        == "--set snapshot.qqq: unknown key 'snapshot.qqq'; allowed here: anchor_every, every, keep, mirror, owed_max"
    )


def test_a_problem_inside_a_list_points_to_where_the_list_begins(job_file: Path) -> None:
    job_file.write_text(JOB.replace("nullable", "nullabel"))
    (problem,) = problems(job_file)
    assert problem.startswith("job.toml:11: unknown key 'features.numeric[1].nullabel'; did you mean")


def test_tables_of_an_array_are_told_apart(job_file: Path) -> None:
    columns = '[[features.numeric]]\nname = "a"\n\n[[features.numeric]]\nname = 7\n'
    head, tail = JOB.split("numeric = [")
    job_file.write_text(head + columns + tail.partition("]\n")[2])
    (problem,) = problems(job_file)
    assert problem == "job.toml:15: features.numeric[1].name = 7: should be a valid string"


def test_a_missing_key_is_reported_where_its_table_is(job_file: Path) -> None:
    job_file.write_text(JOB.replace('column = "late"\n', ""))
    assert problems(job_file) == ["job.toml:16: the key 'labels.column' is missing"]


def test_a_missing_table_is_named(job_file: Path) -> None:
    job_file.write_text(JOB.partition("[dead_letters]")[0])
    assert problems(job_file) == ["job.toml: the table [dead_letters] is missing"]


def test_every_problem_has_its_own_line(job_file: Path) -> None:
    found = problems(job_file, "join.window=1 parsec", EVERTRAIN__LEARNER__BATCH_SIZE="1")
    assert found == [
        "--set join.window: join.window = '1 parsec': a duration is a whole number with ms, s, m, h or d, "
        "for example '30s'",
        "environment variable EVERTRAIN__LEARNER__BATCH_SIZE: learner.batch_size = 1: "
        "should be greater than or equal to 2",
    ]


def test_rules_between_tables_are_reported_too(job_file: Path) -> None:
    (problem,) = problems(job_file, "dead_letters.topic=flights.labels")
    assert problem == "job.toml: features, labels and dead_letters need topics of their own"


def test_a_number_where_a_flag_means_text_says_how_to_quote_it(job_file: Path) -> None:
    (problem,) = problems(job_file, "job.name=7")
    assert problem == "--set job.name: job.name = 7: should be a valid string, so write it in double quotes"


def test_a_column_list_that_is_no_list_is_an_error(job_file: Path) -> None:
    (problem,) = problems(job_file, "features.numeric=distance")
    assert problem == "--set features.numeric: features.numeric = 'distance': should be a list"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learner.learning_rate=inf", "learner.learning_rate = inf: should be a finite number"),
        ("kafka.linger.ms=nan", "kafka.linger.ms = nan: should be a string, a number, true or false"),
        ('join.window="999999999999d"', "join.window = '999999999999d': should be less than or equal to 92"),
        ("monitor.every={rows = 0}", "monitor.every.rows = 0: should be greater than 0"),
        ("monitor.every={rows = 5, ms = 5}", "monitor.every: a cadence has either ms or rows"),
        ("learner.hidden=[-4]", "learner.hidden[0] = -4: should be greater than or equal to 1"),
        ("features.numeric=[3]", "features.numeric[0] = 3: should be a table"),
        ("job.state_dir=3", "job.state_dir = 3: should be a path, in quotes"),
        ('job.state_dir="a\\u0000b"', "job.state_dir = 'a\\x00b': a path has no zero byte"),
    ],
)
def test_a_value_that_would_fail_later_is_refused_at_once(job_file: Path, override: str, expected: str) -> None:
    (problem,) = problems(job_file, override)
    assert problem.startswith(f"--set {override.partition('=')[0]}: {expected}")


def test_a_value_of_several_types_is_named_as_the_file_names_it(job_file: Path) -> None:
    where = "--set learner.threads: learner.threads = 300: "
    expected = [f"{where}should be less than or equal to 256", f"{where}allowed: 'auto'"]
    assert problems(job_file, "learner.threads=300") == expected


def test_secrets_are_not_shown(job_file: Path) -> None:
    (problem,) = problems(job_file, 'kafka.sasl.password=["hunter2"]')
    assert "hunter2" not in problem
    assert problem.endswith("kafka.sasl.password: should be a string, a number, true or false")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[job]\nname = \n", "job.toml:2: not valid TOML: invalid value"),
        ("a = 1\na = 2\n", "job.toml:2: not valid TOML: cannot overwrite a value"),
        ("a = [\n1,\n", "job.toml:2: not valid TOML: invalid value"),
        ("a = 0x8000000000000000", "job.toml: not valid TOML: an integer of more than 64 bits"),
        ("a = " + "[" * 5000, "job.toml: not valid TOML: tables and arrays within each other, more than 16 deep"),
        ("a." * 5000 + "a = 1", "job.toml: not valid TOML: tables and arrays within each other, more than 16 deep"),
    ],
)
def test_a_syntax_error_is_reported_with_its_line(job_file: Path, text: str, expected: str) -> None:
    job_file.write_text(text)
    assert problems(job_file) == [expected]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.toml")[0].endswith("cannot read the job file: No such file or directory")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert problems(tmp_path / "binary.toml")[0].endswith("not a text file in UTF-8 (byte 0)")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("job.name", "--set job.name: write it as table.key=value, for example learner.batch_size=512"),
        ("job name=x", "--set job name: not a key; write it as table.key=value"),
        ("# job.name=x", "--set # job.name: not a key; write it as table.key=value"),
        ("job.name=\udcff", "--set job.name: not text in UTF-8"),
        ("job.'\udcff'=x", "--set job.'\\udcff': not text in UTF-8"),
        ("job.name.first=x", "--set job.name.first: 'job.name' is not a table, it has no keys"),
    ],
)
def test_a_flag_of_the_wrong_form_says_which_form_is_right(job_file: Path, override: str, expected: str) -> None:
    assert problems(job_file, override) == [expected]


def test_the_job_in_deploy_is_valid() -> None:
    path = Path(__file__).parents[2] / "deploy" / "job.toml"
    assert load(path, environment={}).job.name == tomllib.loads(path.read_text())["job"]["name"]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ("schema_file = 'a'", "schema_file is for format = 'avro' and 'protobuf', not for 'json'"),
        ("message = 'a'", "message is for format = 'avro' and 'protobuf', not for 'json'"),
        ("format = 'avro'", "format = 'avro' takes either schema_file, or schema_registry"),
        (
            "format = 'avro'\nschema_file = 'a'\nschema_registry = { url = 'http://a' }",
            "format = 'avro' takes either schema_file, or schema_registry",
        ),
        (
            "format = 'protobuf'\nschema_file = 'a'",
            "format = 'protobuf' takes either schema_file and message, or schema_reg",
        ),
        (
            "format = 'avro'\nschema_registry = {}",
            "schema_registry.url is http(s)://host:port; basic.auth.user.info is for",
        ),
        (
            "format = 'avro'\nschema_registry.url = 'http://me:secret@a'",
            "schema_registry.url is http(s)://host:port; basic",
        ),
        (
            "format = 'protobuf'\nenvelope = 'debezium'\nschema_file = 'a'\nmessage = 'b'",
            "messages of format = 'protobuf' have no envelope",
        ),
    ],
)
def test_what_a_format_needs_is_checked(job_file: Path, keys: str, problem: str) -> None:
    with_line(job_file, keys, after='topic = "flights.features"')
    (found,) = problems(job_file)
    assert found.startswith(f"job.toml:9: features: {problem}")
    assert "secret" not in found
