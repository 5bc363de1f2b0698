function FindProxyForURL(url, host) {
  host = host.toLowerCase().replace(/^\[|\]$/g, "").replace(/\.$/, "");
  var groups = address(host);
  if (groups) return inside(groups) ? CLUSTER : REST;
  if (host === "localhost" || ends(host, "localhost")) return "DIRECT";
  return named(host) ? CLUSTER : REST;
}

// Whether a name is the cluster's, by its spelling alone.
function named(host) {
  var endings = ENDINGS.concat(["svc", "pod"]);
  for (var i = 0; i < endings.length; i++) {
    if (ends(host, endings[i])) return true;
  }
  for (i = 0; i < ENDINGS.length; i++) {
    if (host === ENDINGS[i]) return true;
  }
  // A Service, and what is under it; a namespace may be called like a top-level domain, so no more than that.
  for (i = 0; i < SERVICES.length; i++) {
    var full = SERVICES[i] + "." + NAMESPACE;
    if (host === SERVICES[i] || host === full || ends(host, full)) return true;
  }
  for (i = 0; i < ELSEWHERE.length; i++) {
    if (host === ELSEWHERE[i]) return true;
  }
  return !COMPLETE && ends(host, NAMESPACE);
}

function ends(host, ending) {
  var tail = "." + ending;
  return host.length > tail.length && host.slice(-tail.length) === tail;
}

// An address as numbers of 16 bits, two or eight; null for a name.
function address(host) {
  var four = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(host);
  if (four) {
    for (var i = 1; i <= 4; i++) {
      if (+four[i] > 255) return null;
    }
    return [four[1] * 256 + +four[2], four[3] * 256 + +four[4]];
  }
  if (host.indexOf(":") < 0 || !/^[0-9a-f:.]+$/.test(host)) return null;
  var last = host.slice(host.lastIndexOf(":") + 1);
  if (last.indexOf(".") >= 0) {
    var mapped = address(last);
    if (!mapped || mapped.length !== 2) return null;
    host = host.slice(0, -last.length) + mapped[0].toString(16) + ":" + mapped[1].toString(16);
  }
  var halves = host.split("::");
  if (halves.length > 2) return null;
  var head = halves[0] ? halves[0].split(":") : [];
  var tail = halves[1] ? halves[1].split(":") : [];
  var gap = 8 - head.length - tail.length;
  if (halves.length === 2 ? gap < 1 : gap !== 0) return null;
  while (gap-- > 0) head.push("0");
  var groups = [];
  var all = head.concat(tail);
  for (i = 0; i < 8; i++) {
    if (!/^[0-9a-f]{1,4}$/.test(all[i])) return null;
    groups.push(parseInt(all[i], 16));
  }
  // An IPv4 address in IPv6's clothes is that address.
  if (groups.slice(0, 6).join() === "0,0,0,0,0,65535") return groups.slice(6);
  return groups;
}

function inside(groups) {
  for (var i = 0; i < RANGES.length; i++) {
    if (covers(RANGES[i][0], RANGES[i][1], groups)) return true;
  }
  return false;
}

function covers(base, length, groups) {
  if (base.length !== groups.length) return false;
  for (var i = 0; length > 0; i++, length -= 16) {
    var shift = length < 16 ? 16 - length : 0;
    if (base[i] >> shift !== groups[i] >> shift) return false;
  }
  return true;
}
