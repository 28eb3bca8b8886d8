-- What one replica has another ask a host that is connected there; the answer is sealed for whoever asked.
create table question (
  id blob primary key, agent_uid blob not null, participant text not null, path text not null,
  seal_for blob not null, asked_at integer not null, answer blob
) strict, without rowid;
