-- The requests of wrk: `wrk ... -s loads.lua URL -- LOAD SAMPLE USERS`.
-- SAMPLE is a file; each line has a user and the id of one of their tasks.

local BODY = '{"title": "Buy milk", "description": "Two litres", "priority": "high", "tags": ["home", "shop"], '
  .. '"due_date": "2030-12-24T18:00:00+01:00"}'
local JSON = { ["Content-Type"] = "application/json" }
local paths, users = {}, 0

local function some_task()
  return paths[math.random(#paths)]
end

local function read()
  return wrk.format("GET", some_task())
end

local function list(limit)
  return wrk.format("GET", "/api/user-" .. math.random(0, users - 1) .. "/tasks?limit=" .. limit)
end

-- New tasks belong to other users, so that reads and lists return the same in each run.
local function create()
  return wrk.format("POST", "/api/writer-" .. math.random(0, 999) .. "/tasks", JSON, BODY)
end

local function toggle()
  return wrk.format("PATCH", some_task() .. "/complete")
end

local LOADS = {
  read = read,
  list20 = function() return list(20) end,
  list100 = function() return list(100) end,
  create = create,
  toggle = toggle,
  mix = function()
    local dice = math.random(10)
    if dice <= 6 then return list(20) end
    if dice <= 8 then return read() end
    if dice == 9 then return create() end
    return toggle()
  end,
}

function init(args)
  math.randomseed(os.time())
  users = tonumber(args[3])
  for line in io.lines(args[2]) do
    local user, id = line:match("(%S+) (%S+)")
    paths[#paths + 1] = "/api/" .. user .. "/tasks/" .. id
  end
  request = LOADS[args[1]]
end

function request() end -- wrk checks before init that `request` exists

function done(summary)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "errors": %d}\n', summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout
  ))
end
