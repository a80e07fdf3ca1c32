-- One body again and again; the result as one line of JSON.
-- Environment: BODY_FILE, CONTENT_TYPE.
local file = io.open(os.getenv("BODY_FILE"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = os.getenv("CONTENT_TYPE")

-- Without a single answer the percentiles are not numbers.
local function whole(x) return x == x and math.floor(x) or 0 end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"us":%d,"p50_us":%d,"p90_us":%d,"p99_us":%d,"max_us":%d,"bad_status":%d,"socket_errors":%d,"timeouts":%d}\n',
    summary.requests, summary.duration, whole(latency:percentile(50)), whole(latency:percentile(90)),
    whole(latency:percentile(99)), whole(latency.max), e.status, e.connect + e.read + e.write, e.timeout))
end
