-- What the types of experiments need: for whom a variant is, the factors behind it, and time blocks.
alter table variant add column targeting_rules text not null default '{"labels":[]}';
alter table variant add column levels text not null default '{}';
alter table experiment add column factors text not null default '[]';

-- A participant of a switchback has a row for each time block (0: there are none), two where a pause cut one.
create table assignment_by_block (
  id blob primary key, phase_id blob not null references phase,
  experiment_id blob not null references experiment, participant_id blob not null references participant,
  variant_id blob, method text not null, block text not null, stratum text not null,
  position integer not null, labels_used text not null, from_at integer not null, to_at integer,
  forced_by text, forced_at integer, time_block integer not null default 0
) strict;
insert into assignment_by_block (id, phase_id, experiment_id, participant_id, variant_id, method, block, stratum,
  position, labels_used, from_at, to_at, forced_by, forced_at)
  select id, phase_id, experiment_id, participant_id, variant_id, method, block, stratum, position, labels_used,
  from_at, to_at, forced_by, forced_at from assignment;
drop table assignment;
alter table assignment_by_block rename to assignment;
create unique index assignment_once on assignment (phase_id, participant_id) where time_block = 0;
create unique index assignment_in_time on assignment (phase_id, participant_id, time_block, from_at);
create index assignment_of_participant on assignment (participant_id, from_at);
