-- Bodies from a file, each once: "<decimal length>\n<bytes>" one after the other. The result as in post.lua.
-- Environment: BODY_FILE, CONTENT_TYPE.
local bodies, position = {}, 0
local file = io.open(os.getenv("BODY_FILE"), "rb")
while true do
  local length = file:read("*n")
  if not length then break end
  file:read(1)
  bodies[#bodies + 1] = file:read(length)
end
file:close()
local headers = { ["Content-Type"] = os.getenv("CONTENT_TYPE") }

function request()
  position = position + 1
  return wrk.format("POST", nil, headers, bodies[position] or "used up")
end

-- Without a single answer the percentiles are not numbers.
local function whole(x) return x == x and math.floor(x) or 0 end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"us":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d,"bad_status":%d,"socket_errors":%d,"timeouts":%d}\n',
    summary.requests, summary.duration, whole(latency:percentile(50)), whole(latency:percentile(90)),
    whole(latency:percentile(99)), whole(latency.max), e.status, e.connect + e.read + e.write, e.timeout))
end
