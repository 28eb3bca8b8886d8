-- What was known of a phase when a day was closed, and what was decided with it. Rows are only ever added.
create table look (
  phase_id blob not null references phase, number integer not null, day integer not null,
  cut_off integer not null, at integer not null, decisions text not null, snapshot blob not null,
  primary key (phase_id, number)
) strict, without rowid;
