-- When opens of a participant's targets, which are its impressions, may have gone uncounted.
create table unseen (
  participant_id blob not null, from_at integer not null, id blob not null unique, to_at integer not null,
  reason text not null, received_at integer not null,
  primary key (participant_id, from_at, id)
) strict, without rowid;
