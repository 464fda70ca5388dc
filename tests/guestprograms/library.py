"""Work of the C library's and the interpreter's: a line each, the same wherever it runs."""
import decimal, hashlib, json, math, multiprocessing, random, re, signal, struct, subprocess, threading, zlib

rng = random.Random(20)
data = rng.randbytes(300_000)
print("hashes", [hashlib.new(n, data).hexdigest()[:16] for n in ("md5", "sha1", "sha256", "sha512", "blake2b", "sha3_256")])
packed = zlib.compress(data.hex().encode(), 6)
print("zlib", len(packed), zlib.decompress(packed) == data.hex().encode(), zlib.crc32(data), zlib.adler32(data))
x, total = 0.3, 0.0
for i in range(1, 20_000):
    x = math.sin(x * i) + math.sqrt(i) / 7 - math.log(i) * math.atan2(x, i)
    total += math.fmod(x, 3) + math.exp(-abs(x)) + math.gamma(1 + i % 7 / 3)
print("floats", x.hex(), total.hex(), struct.pack("<efd", 1.1, x, x).hex())
print("integers", pow(3, 20_001, 10**300 + 7) % 10**18, math.factorial(600) % (2**89 - 1), math.isqrt(10**401))
decimal.getcontext().prec = 60
print("decimals", (decimal.Decimal(2).sqrt() ** 3 / decimal.Decimal(7)).ln())
words = "".join(rng.choice("abcdefgh ") for _ in range(60_000))
print("regexps", len(re.findall(r"\b(\w)\w*?(?=\1)\w+\b", words)), len(re.sub(r"([aeg]+)([bcd]+)", r"\2\1", words).split()))
print("json", zlib.crc32(json.dumps(json.loads(json.dumps([{"k": i, "v": [i / 3, str(i)]} for i in range(3000)]))).encode()))

counted, lock = [0], threading.Lock()
def count():
    for _ in range(2000):
        with lock:
            counted[0] += 1
threads = [threading.Thread(target=count) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print("threads", counted)
with multiprocessing.get_context("fork").Pool(3) as pool:
    print("processes", sum(pool.map(math.isqrt, range(2000))))
alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while len(alarms) < 20:
    sum(range(1000))
signal.setitimer(signal.ITIMER_REAL, 0)
print("signals", len(alarms) >= 20, subprocess.run(["sh", "-c", "kill -SEGV $$"]).returncode)
