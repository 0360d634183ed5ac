"""The words of Malay that the question rules look for: pointers, verbs, dates, names, heads of definitions."""

from __future__ import annotations

import re

POINTERS = re.compile(
    r"\b(?:ia|ianya|dia|beliau|mereka|kami|kita|saya|aku|anda|kamu|baginda|nya|ini|itu|tersebut|berkenaan|terbabit|"
    r"tadi|sini|sana|situ|begini|begitu|demikian|sedemikian|semalam|esok|kelmarin|kemarin|kata|berkata|ujar|jelas|"
    r"tambah|lain|yakni|bahawa|bahwa|manakala|sedangkan|sementara|namun|tetapi|tapi|malah|seterusnya|selain|justeru|"
    r"juga|turut|bagaimanapun|pula|sahaja|saja|lalu|lepas|kini|sekarang|kelak|nanti|dahulu|terdahulu|lagi|sama|"
    r"tahap kedua|berikut|berikutnya|di atas|di bawah|apa|siapa|mengapa|mana|ketiga-tiga|kedua-dua|jika|sekiranya|"
    r"apabila|kerana|karena|supaya|agar|bagaimana|bahwasanya|sebegini|sebegitu|penulis|lanjut|ketika|adakah|bayangkan|sekali)\b|"
    # -nya at the end of a noun has its owner elsewhere; "hanya", "biasanya" and their like have none.
    r"\b(?!hanya|tanya|punya|ternyata|biasanya|umumnya)\w+nya\b",
    re.IGNORECASE,
)
"""Words that point at something said elsewhere; a question that holds one cannot be understood alone."""

_OPENERS = """
yang dan atau serta tetapi namun jika jikalau kalau sekiranya apabila bila ketika semasa sewaktu setelah selepas
sebelum sejak sambil walaupun meskipun sungguhpun kerana sebab oleh dengan untuk bagi dalam pada di dari daripada ke
kepada sebagai seperti menurut mengikut berdasarkan agar supaya hingga sehingga bukan tidak tiada ada adalah ialah
juga turut telah sudah akan sedang masih pernah boleh dapat perlu mesti harus hendaklah jangan mari maka lalu lantas
kemudian seterusnya akhirnya selain melalui menerusi antara mana-mana setiap semua kedua-dua apa siapa mengapa kenapa
bagaimana berapa terdapat inilah itulah hal perkara justeru malahan malah bahkan contohnya misalnya lagi hanya cuma
tanpa terhadap sekali satu salah mereka bermula seramai sebanyak sejumlah seorang sebuah sejenis seekor biarpun andai
tatkala biar demi sesungguhnya akibat sehubungan susulan paling lebih amat sangat lihat begitulah segala pelbagai
beberapa ramai banyak dua tiga empat lima enam tujuh lapan sembilan sepuluh kali alasan keadaan situasi kebanyakan
sebahagian kita dek para cukup mujur mungkin ternyata jelas memang bukankah antaranya pihak umum orang kes kejadian
hasilnya sepanjang terutama khususnya kini dulu dahulu perkembangan ambil secara bayangkan adakah suatu sesuatu karena
setengah kenyataan insiden tragedi benda pertama kedua ketiga keempat kelima terakhir
"""
NO_SUBJECT = frozenset(_OPENERS.split())
"""A subject that is understood alone does not begin with one of these."""

_VERB_PREFIX = r"(?:me(?:m|n|l|r|w|y)\w{3,}|ber\w{3,}|di\w{4,}|ter\w{4,})"
_NO_VERB = (
    r"(?!(?:mesyuarat|menteri|menara|mentega|mental|mentor|melayu|merdeka|merpati|membran|memori|meriam|metro|melaka|"
    r"menu|metri\w*|mesej|meter|bersama|berita|beras|berat|bersih|berlian|berbilang|berkat|bersara|berlesen|berdaftar|"
    r"bertauliah|bersepadu|berkualiti|berterusan|bernama|berbahaya|berjadual|berkaitan|beragama|berasaskan|berkuasa|"
    r"dinding|diri|dialog|direktor\w*|digital|disember|diet|diabetes|dimensi|diplom\w*|dinasti|disiplin|dinamik|"
    r"distrik|"
    r"diskaun|diskriminasi|disertasi|difteria|digit|dividen|divisyen|terhadap|terengganu|teras|terbitan|tertentu|"
    r"terapi|"
    r"teritori|terbaik|terbesar|terbuka|tertinggi|tersendiri|terkemuka|terkenal|terpenting|terbaru|terbaharu|terkini|"
    r"terhormat|terunggul|terutama|terpilih|terancam|termasuk|teroris\w*|terminal|terjemahan|termal|terendah|terbanyak|"
    r"terawal|terakhir|tertua)\b)"
)
VERB = re.compile(rf"\b{_NO_VERB}{_VERB_PREFIX}\b", re.IGNORECASE)
"""A word that looks like a verb (me-, ber-, di-, ter-) and is no noun or adjective of that look."""

SAYING = re.compile(
    r"\b(?:menegaskan|menyatakan|mendakwa|memberitahu|menjelaskan|percaya|yakin|berharap|berpendapat|mengakui|"
    r"menyifatkan|mengatakan|menyebut|mendedahkan|menasihatkan|meminta|menggesa|menyarankan|berasa|merasa\w*|bimbang|memperkirakan|mengungkapkan|menilai|menyebutkan|mengaku)\b"
)
"""After one of these, a reason belongs to what was said and not to the saying."""

_MONTH = (
    r"(?:Januari|Februari|Mac|Maret|April|Mei|Jun|Juni|Julai|Juli|Ogos|Agustus|September|Oktober|November|Disember|"
    r"Desember|Jan|Feb|Okt|Nov|Dis|Sept)"
)
DATE = (
    rf"(?:(?:tanggal |hari \w+,? )?\d{{1,2}}(?:hb)? {_MONTH}(?: \d{{4}})?(?: Masihi)?|{_MONTH} \d{{4}}|"
    r"(?:tahun |abad ke-?)\d{2,4}(?:-an)?(?: Masihi)?|1[5-9]\d\d|20\d\d)"
)
NAME = r"[A-Z][\w'’-]+(?: (?:bin |binti |al |a/l |de |van )?[A-Z][\w'’.-]*)*"

PERSON = re.compile(
    r"^(?:seorang|bekas|mantan|pengasas|pendiri|pelakon|penyanyi|pengarah|ahli|anggota|ketua|presiden|perdana|menteri|"
    r"pemain|jurulatih|pelatih|pengerusi|tokoh|penulis|anak|isteri|suami|pemilik|naib|timbalan|raja|sultan)\b"
)
TITLED = re.compile(r"^(?:Datuk|Dato|Tan Sri|Tun|Dr|Prof|Encik|Puan|Cik|Haji|Hajah|Tuan|Sultan|Raja|Nabi|Imam|Ustaz)\b")
NOUN = re.compile(
    r"^(?:sebuah|sejenis|suatu|sekumpulan|sekelompok|seekor|sebatang|(?:satu |salah satu )?(?:nama|istilah|proses|"
    r"kaedah|"
    r"jenis|penyakit|agama|bahasa|kawasan|pusat|badan|agensi|organisasi|pertubuhan|parti|syarikat|program|projek|"
    r"kumpulan|golongan|gejala|sistem|ilmu|alat|aplikasi|bentuk|unit|akta|undang-undang|hormon|tumbuhan|haiwan|makanan|"
    r"minuman|konsep|teknologi|perbuatan|upacara|tradisi|adat|amalan|kajian|platform|inisiatif|ibu (?:kota|negeri|"
    r"negara)|"
    r"bandar|pulau|gunung|sungai|pertandingan|kejohanan|model|enjin|motosikal|bahan|zat|sebatian|unsur|kitab|karya|"
    r"novel))\b"
)
"""What a definition begins with; "X merupakan cabaran besar" is an opinion and asks for nothing."""

HEADS = re.compile(
    r"^(?:faktor|punca|tujuan|objektif|sebab|matlamat|cara|langkah|tema|kesan|syarat|ciri|fungsi|peranan|hasil|dapatan|"
    r"kaedah|contoh|nama|ibu negara|ibu kota|bahasa|motif|cogan kata|moto|kelebihan|kebaikan|keburukan|masalah|cabaran|"
    r"komponen|elemen|unsur|simptom|gejala|rukun|prinsip|konsep|definisi|maksud|sumber|implikasi|jenis|aspek|isu)"
    r"(?:-\w+)?\b",
    re.IGNORECASE,
)
"""Heads that ask for what follows "ialah", whatever it is."""

AMOUNT = re.compile(
    r"^(?:sebanyak |seramai |kira-kira |lebih kurang |hampir |sekitar )?(?:RM|USD|US\$|Rp\.? ?|\d)[\d.,]*"
)
MEASURES = {
    "bernilai": "nilai", "berharga": "harga", "berkeluasan": "keluasan", "seluas": "keluasan",
    "setinggi": "ketinggian", "sepanjang": "panjang", "seberat": "berat", "berjumlah": "jumlah",
    "berkapasiti": "kapasiti", "sedalam": "kedalaman",
}  # fmt: skip
"""Verb of measure → the noun that asks for it."""
