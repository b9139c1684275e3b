"""What a Redis server does in one go: Lua scripts.

All keys of a run begin with the same prefix, ARGV[1]. An error reply that begins with TFI names
what `RedisStore` raises. Redis runs a script as a whole or, out of memory, fails it at its first
write; each of these writes only after all its checks.
"""

# Refuse a run that is not the one that was joined: ARGV[2] is its id.
_SAME_RUN = """
local prefix = ARGV[1]
local kind = redis.call('TYPE', prefix .. 'run').ok
if kind ~= 'none' and kind ~= 'hash' then return redis.error_reply('TFIFOREIGN run') end
if redis.call('HGET', prefix .. 'run', 'id') ~= ARGV[2] then return redis.error_reply('TFIRUN') end
"""

# ARGV: prefix, id, description, number of shards → the run's magic, id, created, description.
CREATE = """
local run, waiting = ARGV[1] .. 'run', ARGV[1] .. 'waiting'
local kind = redis.call('TYPE', run).ok
if kind ~= 'none' and kind ~= 'hash' then return redis.error_reply('TFIFOREIGN run') end
if kind == 'none' then
  local now = redis.call('TIME')
  local created = now[1] .. '.' .. string.format('%06d', now[2])
  -- Nothing of a run that was deleted halfway may be taken for this one's.
  local pointer = ARGV[1] .. 'parameters'
  local former = redis.call('HMGET', pointer, 'token', 'chunks')
  local chunks = redis.call('LRANGE', ARGV[1] .. 'formers', 0, -1)
  if former[1] then table.insert(chunks, former[1] .. ' ' .. (former[2] or 0) .. ' 0') end
  for _, one in ipairs(chunks) do
    local token, count = string.match(one, '^(%S+) (%d+) ')
    for number = 0, tonumber(count or 0) - 1 do
      redis.call('DEL', pointer .. ':' .. token .. ':' .. number)
    end
  end
  for _, one in ipairs(redis.call('SMEMBERS', ARGV[1] .. 'begun')) do
    local token, count = string.match(one, '^(%S+) (%d+)$')
    for number = 0, tonumber(count or 0) - 1 do
      redis.call('DEL', pointer .. ':' .. token .. ':' .. number)
    end
  end
  for _, name in ipairs({'parameters', 'formers', 'begun', 'waiting', 'leased', 'holders',
                         'changes', 'count', 'dense', 'log', 'logged', 'log_bytes',
                         'reports'}) do
    redis.call('DEL', ARGV[1] .. name)
  end
  for shard = 0, tonumber(ARGV[4]) - 1 do
    redis.call('DEL', ARGV[1] .. 'scores:' .. shard)
    redis.call('ZADD', waiting, 0, shard)
  end
  redis.call('HSET', run, 'magic', 'tf_importance', 'id', ARGV[2], 'created', created,
             'description', ARGV[3])
end
return redis.call('HMGET', run, 'magic', 'id', 'created', 'description')
"""

# ARGV: prefix, id → a number larger than any before, those that the server has forgotten included.
TAKE_OVER = (
    _SAME_RUN
    + """
local fence, clock = prefix .. 'fence', redis.call('TIME')
local following = (tonumber(redis.call('GET', fence) or 0) or 0) + 1
local number = math.max(following, clock[1] * 1000000 + clock[2])
redis.call('SET', fence, string.format('%.0f', number))
return number
"""
)

# ARGV: prefix, id, fence, token, chunks, seconds → 1. A publication begins; what is left of those
# that were begun and not ended is deleted.
BEGIN = (
    _SAME_RUN
    + """
if (tonumber(redis.call('GET', prefix .. 'fence') or 0) or 0) > tonumber(ARGV[3]) then
  return redis.error_reply('TFISUPERSEDED')
end
local begun = prefix .. 'begun'
for _, one in ipairs(redis.call('SMEMBERS', begun)) do
  local token, count = string.match(one, '^(%S+) (%d+)$')
  for number = 0, tonumber(count or 0) - 1 do
    redis.call('UNLINK', prefix .. 'parameters:' .. token .. ':' .. number)
  end
end
redis.call('DEL', begun)
redis.call('SADD', begun, ARGV[4] .. ' ' .. ARGV[5])
redis.call('EXPIRE', begun, ARGV[6])
return 1
"""
)

# ARGV: prefix, id, fence, version to follow, token, chunks, size, chunk size, digest,
# bytes of former parameters to keep → the version.
#
# Those who read the former ones shall come to an end: of these the last is kept in any case, and
# those before as long as all fit.
PUBLISH = (
    _SAME_RUN
    + """
local pointer = prefix .. 'parameters'
-- A server that came back from its disk may know an earlier master only: that supersedes nobody.
if (tonumber(redis.call('GET', prefix .. 'fence') or 0) or 0) > tonumber(ARGV[3]) then
  return redis.error_reply('TFISUPERSEDED')
end
local token, chunks, size, whole = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local function chunk(token, number) return pointer .. ':' .. token .. ':' .. number end
for number = 0, chunks - 1 do
  local wanted = math.min(whole, size - number * whole)
  if redis.call('STRLEN', chunk(token, number)) ~= wanted then
    return redis.error_reply('TFICORRUPT ' .. number)
  end
end
local former = redis.call('HMGET', pointer, 'version', 'token', 'chunks', 'size')
local version = math.max(tonumber(former[1] or 0), tonumber(ARGV[4])) + 1
redis.call('SET', prefix .. 'fence', ARGV[3])
redis.call('HSET', pointer, 'version', version, 'token', token, 'chunks', chunks, 'size', size,
           'digest', ARGV[9])
for number = 0, chunks - 1 do redis.call('PERSIST', chunk(token, number)) end
redis.call('DEL', prefix .. 'begun')
local formers = prefix .. 'formers'
if former[2] then
  redis.call('LPUSH', formers, former[2] .. ' ' .. former[3] .. ' ' .. former[4])
end
local kept, bytes = 0, 0
for place, one in ipairs(redis.call('LRANGE', formers, 0, -1)) do
  local token, count, size = string.match(one, '^(%S+) (%d+) (%d+)$')
  bytes = bytes + tonumber(size)
  if place == 1 or (bytes <= tonumber(ARGV[10]) and place <= 100) then
    kept = place
  else
    for number = 0, tonumber(count) - 1 do redis.call('UNLINK', chunk(token, number)) end
  end
end
redis.call('LTRIM', formers, 0, kept - 1)
return version
"""
)

# ARGV: prefix, id, shard, its examples, version, time, records, offsets (4 bytes each, or none),
# token of a lease or none, bytes of single records to keep → how many of the records were newer
# than those there.
#
# What is given by offsets, and is less than a shard, goes to a log of single records as well:
# whoever looks for what changed reads 20 bytes for each of them, and not the shards.
#
# A shard is a header of 16 bytes ('TFIS', format, and the latest version and time in it) and its
# records. A message later than all of a shard is copied as it is; only one that comes late is
# compared record by record.
WRITE = (
    _SAME_RUN
    + """
local shard, size, version, time = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local records, offsets, token = ARGV[7], ARGV[8], ARGV[9]
local key = prefix .. 'scores:' .. shard
local kind = redis.call('TYPE', key).ok
if kind ~= 'none' and kind ~= 'string' then
  return redis.error_reply('TFIFOREIGN shard ' .. shard)
end
local latest_version, latest_time = 0, 0
if kind == 'string' then
  local header = redis.call('GETRANGE', key, 0, 15)
  if redis.call('STRLEN', key) ~= 16 + 12 * size or string.sub(header, 1, 4) ~= 'TFIS'
     or struct.unpack('<I4', header, 5) ~= 1 then
    return redis.error_reply('TFIFOREIGN shard ' .. shard)
  end
  latest_version, latest_time = struct.unpack('<I4I4', header, 9)
end
local function is_newer(other_version, other_time)
  return version > other_version or (version == other_version and time > other_time)
end
local count = #records / 12
local later = is_newer(latest_version, latest_time)
local function written(places)
  if kind == 'none' then redis.call('SETRANGE', key, 16 + 12 * size - 1, '\\0') end
  if later then latest_version, latest_time = version, time end
  redis.call('SETRANGE', key, 0, 'TFIS' .. struct.pack('<I4I4I4', 1, latest_version, latest_time))
  for place, bytes in pairs(places) do redis.call('SETRANGE', key, place, bytes) end
end
local accepted, given = 0, {}
if later and offsets == '' then
  accepted = count
  written({[16] = records})
else
  local places = {}
  for i = 0, count - 1 do
    local offset = i
    if offsets ~= '' then offset = struct.unpack('<I4', offsets, 4 * i + 1) end
    local place = 16 + 12 * offset
    local known = ''
    if not later then known = redis.call('GETRANGE', key, place + 4, place + 11) end
    local known_version, known_time = 0, 0
    if known ~= '' then known_version, known_time = struct.unpack('<I4I4', known) end
    if is_newer(known_version, known_time) then
      accepted = accepted + 1
      places[place] = string.sub(records, 12 * i + 1, 12 * i + 12)
    end
  end
  if accepted > 0 then written(places) end
  given = places
end
if accepted > 0 then
  local number = redis.call('INCR', prefix .. 'count')
  redis.call('ZADD', prefix .. 'changes', number, shard)
  if offsets == '' or 20 * accepted >= 12 * size then
    redis.call('ZADD', prefix .. 'dense', number, shard)
  else
    local log, items = prefix .. 'log', {}
    for place, bytes in pairs(given) do
      items[#items + 1] = struct.pack('<I4I4', tonumber(shard), (place - 16) / 12) .. bytes
    end
    redis.call('RPUSH', log, table.concat(items))
    redis.call('INCR', prefix .. 'logged')
    local bytes = redis.call('INCRBY', prefix .. 'log_bytes', 20 * accepted)
    while bytes > tonumber(ARGV[10]) do
      local oldest = redis.call('LPOP', log)
      if not oldest then break end
      bytes = redis.call('DECRBY', prefix .. 'log_bytes', #oldest)
    end
  end
end
if token ~= '' then
  local holder = redis.call('HGET', prefix .. 'holders', shard)
  if holder and string.sub(holder, 1, #token + 1) == token .. ' ' then
    redis.call('HDEL', prefix .. 'holders', shard)
    redis.call('ZREM', prefix .. 'leased', shard)
    redis.call('ZADD', prefix .. 'waiting', version, shard)
  end
end
return accepted
"""
)

# ARGV: prefix, id, known count, known messages of the log → the count, the shards that changed
# since, the number of messages, and the single records of those that changed in part alone.
CHANGES = (
    _SAME_RUN
    + """
local count = tonumber(redis.call('GET', prefix .. 'count') or 0)
local known = tonumber(ARGV[3])
if known > count then known = 0 end
local log = prefix .. 'log'
local logged = tonumber(redis.call('GET', prefix .. 'logged') or 0)
local seen, first = tonumber(ARGV[4]), logged - redis.call('LLEN', log)
if known == 0 or seen < first or seen > logged then
  return {count, redis.call('ZRANGEBYSCORE', prefix .. 'changes', '(' .. known, '+inf'), logged, ''}
end
local items = table.concat(redis.call('LRANGE', log, seen - first, -1))
return {count, redis.call('ZRANGEBYSCORE', prefix .. 'dense', '(' .. known, '+inf'), logged, items}
"""
)

# ARGV: prefix, id, token, version, milliseconds, shards → the shard, or nothing. Shards that the
# server has forgotten wait again.
LEASE = (
    _SAME_RUN
    + """
local waiting, leased, holders = prefix .. 'waiting', prefix .. 'leased', prefix .. 'holders'
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for _, shard in ipairs(redis.call('ZRANGEBYSCORE', leased, '-inf', now, 'LIMIT', 0, 100)) do
  local holder = redis.call('HGET', holders, shard) or ' 0'
  redis.call('ZADD', waiting, string.match(holder, ' (%d+)$'), shard)
  redis.call('ZREM', leased, shard)
  redis.call('HDEL', holders, shard)
end
local shards = tonumber(ARGV[6])
if redis.call('ZCARD', waiting) + redis.call('ZCARD', leased) < shards then
  for shard = 0, shards - 1 do
    if not redis.call('ZSCORE', waiting, shard) and not redis.call('ZSCORE', leased, shard) then
      redis.call('ZADD', waiting, 0, shard)
    end
  end
end
local first = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
if #first == 0 or tonumber(first[2]) >= tonumber(ARGV[4]) then return false end
redis.call('ZADD', leased, now + tonumber(ARGV[5]), first[1])
redis.call('HSET', holders, first[1], ARGV[3] .. ' ' .. first[2])
redis.call('ZREM', waiting, first[1])
return tonumber(first[1])
"""
)

# ARGV: prefix, id, shard, token, milliseconds → 1 if the lease is still its holder's, else 0.
RENEW = (
    _SAME_RUN
    + """
local holder, token = redis.call('HGET', prefix .. 'holders', ARGV[3]), ARGV[4]
if not holder or string.sub(holder, 1, #token + 1) ~= token .. ' ' then return 0 end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('ZADD', prefix .. 'leased', now + tonumber(ARGV[5]), ARGV[3])
return 1
"""
)

# ARGV: prefix, id, name, numbers as JSON without their closing brace.
REPORT = (
    _SAME_RUN
    + """
local now = redis.call('TIME')
local time = now[1] .. '.' .. string.format('%06d', now[2])
return redis.call('HSET', prefix .. 'reports', ARGV[3], ARGV[4] .. ', "time": ' .. time .. '}')
"""
)
