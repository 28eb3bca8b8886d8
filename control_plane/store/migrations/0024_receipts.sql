-- What an application said it loaded: facts like views, whatever was on disk.
create table receipt (
  participant_id blob not null, path text not null, at integer not null, id blob not null,
  digest blob not null, received_at integer not null,
  primary key (participant_id, path, at, id)
) strict, without rowid;
create unique index receipt_id on receipt (id);
