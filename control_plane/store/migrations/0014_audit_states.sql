-- What a change was about, as it was before and after; null where it was not there, or where nothing is shown of it.
alter table audit add column before text;
alter table audit add column after text;
