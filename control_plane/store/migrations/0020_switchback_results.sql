-- Not to say when alpha is spent means 14 days, or all of a switchback; until now only the number was kept.
update experiment set design = json_remove(design, '$.analysis.horizonDays')
  where json_extract(design, '$.analysis.horizonDays') = 14;
-- The plan of a switchback has its blocks in it; what was taken of one without them says nothing of changes.
update experiment set analysis_fingerprint = null where type = 'switchback';
