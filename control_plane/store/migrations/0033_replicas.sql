-- The processes that serve this database, where it can have several; `beat` grows with every sign of life.
create table replica (
  id blob primary key, name text not null, started_at integer not null, seen_at integer not null,
  beat integer not null
) strict, without rowid;
-- Who does what is due by itself; `beat` grows with every sign of life, `token` whenever it is somebody else.
create table leader (
  seat integer primary key, replica_id blob, token integer not null, beat integer not null
) strict;
insert into leader (seat, replica_id, token, beat) values (1, null, 0, 0);
