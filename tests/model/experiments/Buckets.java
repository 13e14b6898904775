// Numbers of docs/experiments.md by XXH3-64 as its specification has it, without a seed, for inputs of any length.
// In: lines of a salt, a tab and a unit, in UTF-8. Prints one number a line.
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;

class Buckets {
    static final long PRIME32_1 = 0x9E3779B1L, PRIME32_2 = 0x85EBCA77L, PRIME32_3 = 0xC2B2AE3DL;
    static final long PRIME64_1 = 0x9E3779B185EBCA87L, PRIME64_2 = 0xC2B2AE3D27D4EB4FL;
    static final long PRIME64_3 = 0x165667B19E3779F9L, PRIME64_4 = 0x85EBCA77C2B2AE63L;
    static final long PRIME64_5 = 0x27D4EB2F165667C5L;
    static final int STRIPE = 64, BLOCK_STRIPES = 16;
    static final ByteBuffer SECRET = little(HexFormat.of().parseHex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        + "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        + "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        + "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        + "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
        + "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"));

    static ByteBuffer little(byte[] bytes) {
        return ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN);
    }

    static long fold(long one, long other) {
        long high = Math.multiplyHigh(one, other) + ((one >> 63) & other) + ((other >> 63) & one);
        return one * other ^ high;
    }

    static long avalanche(long hash) {
        hash = (hash ^ hash >>> 37) * 0x165667919E3779F9L;
        return hash ^ hash >>> 32;
    }

    static long avalanche64(long hash) {
        hash = (hash ^ hash >>> 33) * PRIME64_2;
        hash = (hash ^ hash >>> 29) * PRIME64_3;
        return hash ^ hash >>> 32;
    }

    static long mix(ByteBuffer in, int at, int secret) {
        return fold(in.getLong(at) ^ SECRET.getLong(secret), in.getLong(at + 8) ^ SECRET.getLong(secret + 8));
    }

    static long hash(byte[] bytes) {
        ByteBuffer in = little(bytes);
        int length = bytes.length;
        if (length == 0) {
            return avalanche64(SECRET.getLong(56) ^ SECRET.getLong(64));
        }
        if (length <= 3) {
            int first = bytes[0] & 0xFF, middle = bytes[length >> 1] & 0xFF, last = bytes[length - 1] & 0xFF;
            int combined = first << 16 | middle << 24 | last | length << 8;
            int key = SECRET.getInt(0) ^ SECRET.getInt(4);
            return avalanche64((combined ^ key) & 0xFFFFFFFFL);
        }
        if (length <= 8) {
            long keyed = (in.getInt(length - 4) & 0xFFFFFFFFL) + ((long) in.getInt(0) << 32);
            keyed ^= SECRET.getLong(8) ^ SECRET.getLong(16);
            keyed ^= Long.rotateLeft(keyed, 49) ^ Long.rotateLeft(keyed, 24);
            keyed *= 0x9FB21C651E98DF25L;
            keyed ^= (keyed >>> 35) + length;
            keyed *= 0x9FB21C651E98DF25L;
            return keyed ^ keyed >>> 28;
        }
        if (length <= 16) {
            long low = in.getLong(0) ^ SECRET.getLong(24) ^ SECRET.getLong(32);
            long high = in.getLong(length - 8) ^ SECRET.getLong(40) ^ SECRET.getLong(48);
            return avalanche(length + Long.reverseBytes(low) + high + fold(low, high));
        }
        if (length <= 128) {
            long sum = length * PRIME64_1;
            for (int pair = (length - 1) / 32; pair >= 0; pair--) {
                sum += mix(in, 16 * pair, 32 * pair) + mix(in, length - 16 * (pair + 1), 32 * pair + 16);
            }
            return avalanche(sum);
        }
        return length <= 240 ? middling(in, length) : striped(in, length);
    }

    static long middling(ByteBuffer in, int length) {
        long sum = length * PRIME64_1;
        for (int round = 0; round < 8; round++) {
            sum += mix(in, 16 * round, 16 * round);
        }
        sum = avalanche(sum);
        for (int round = 8; round < length / 16; round++) {
            sum += mix(in, 16 * round, 16 * (round - 8) + 3);
        }
        return avalanche(sum + mix(in, length - 16, 136 - 17));
    }

    static long striped(ByteBuffer in, int length) {
        long[] lanes = {
            PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1
        };
        int stripes = (length - 1) / STRIPE;
        for (int stripe = 0; stripe < stripes; stripe++) {
            int inBlock = stripe % BLOCK_STRIPES;
            accumulate(lanes, in, stripe * STRIPE, 8 * inBlock);
            if (inBlock == BLOCK_STRIPES - 1) {
                for (int lane = 0; lane < 8; lane++) {
                    lanes[lane] ^= lanes[lane] >>> 47 ^ SECRET.getLong(128 + 8 * lane);
                    lanes[lane] *= PRIME32_1;
                }
            }
        }
        accumulate(lanes, in, length - STRIPE, 192 - STRIPE - 7);
        long sum = length * PRIME64_1;
        for (int pair = 0; pair < 4; pair++) {
            long one = lanes[2 * pair] ^ SECRET.getLong(11 + 16 * pair);
            sum += fold(one, lanes[2 * pair + 1] ^ SECRET.getLong(19 + 16 * pair));
        }
        return avalanche(sum);
    }

    static void accumulate(long[] lanes, ByteBuffer in, int at, int secret) {
        for (int lane = 0; lane < 8; lane++) {
            long value = in.getLong(at + 8 * lane), keyed = value ^ SECRET.getLong(secret + 8 * lane);
            lanes[lane ^ 1] += value;
            lanes[lane] += (keyed & 0xFFFFFFFFL) * (keyed >>> 32);
        }
    }

    public static void main(String[] arguments) throws IOException {
        var lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            byte[] text = line.replace('\t', '\0').getBytes(StandardCharsets.UTF_8);
            System.out.println(Long.remainderUnsigned(hash(text), 10_000));
        }
    }
}
